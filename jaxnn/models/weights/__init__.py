"""Weights in and out: folders as Hugging Face writes them, read into our modules and written from them.

One table an architecture (`bert`, `gpt2`, `llama`, ...) names each parameter here and the tensors there, with the
transform between them; reading and writing both follow it, so that a round trip is exact. Nothing is unpickled:
PyTorch's own files are interpreted as data (`pickled`). A new family is a file beside these and its name in
`folder.KINDS`.
"""

from jaxnn.models.weights.folder import load as load, save as save
