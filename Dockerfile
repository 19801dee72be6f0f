# docker build -t jaxnn .                                            (CPU)
# docker build --build-arg EXTRAS=experiments,cuda -t jaxnn-cuda .   (NVIDIA GPU; run with --gpus all)
FROM python:3.13-slim

ARG EXTRAS=experiments
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

WORKDIR /jaxnn
COPY pyproject.toml README.md LICENSE ./
COPY constraints constraints
COPY jaxnn jaxnn
RUN pip install -c constraints/py313.txt setuptools
RUN pip install -c constraints/py313.txt --no-build-isolation ".[${EXTRAS}]"

# The recipes are read from the folder, the library from where pip put it.
COPY experiments experiments
RUN rm -rf jaxnn build *.egg-info && jaxnn --version

# Whoever runs it (docker run --user) has a home to keep caches in.
RUN mkdir -m 1777 /home/jaxnn
ENV HOME=/home/jaxnn
CMD ["jaxnn", "doctor"]
