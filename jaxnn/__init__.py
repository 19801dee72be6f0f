"""jaxnn: a functional training library for JAX.

Models are pure functions, optimizers are gradient transformations, and a training run is a pure function of
(code, config, seed, journal). The rooms, from the top down: `cli`, `train`, `core` and `runs`, then `data`, `models`,
`losses`, `metrics`, `optim`, `parallel`, `bench` and `figures`, then `cost`, `sharding`, `report`, `tree`, `rng` and
`lookups`, and at the bottom `typing`. A room imports only from rooms below it; import-linter enforces that.

Importing `jaxnn` loads nothing but its version; import the rooms you use:

    from jaxnn import data, losses, metrics, models, optim, parallel, train
"""

__version__ = "0.1.0"
