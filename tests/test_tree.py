from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxnn import tree


class Pair(NamedTuple):
    first: Any
    second: Any


NESTED = {
    "blocks_0": {"attention": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}},
    "list": [jnp.zeros(1), (jnp.zeros(2), jnp.zeros(3))],
    "pair": Pair(jnp.ones(4), None),
}


def test_paths_name_dict_keys_indices_and_attributes():
    assert list(tree.leaves_by_path(NESTED)) == [
        "blocks_0/attention/bias",
        "blocks_0/attention/kernel",
        "list/0",
        "list/1/0",
        "list/1/1",
        "pair/first",
    ]
    assert list(tree.leaves_by_path({3: 1})) == ["3"]
    assert list(tree.leaves_by_path(5.0)) == ["."]
    assert tree.leaves_by_path({}) == {}


def test_paths_of_an_optimizer_state_name_its_fields():
    state = optax.adam(1e-3).init({"w": jnp.ones(2)})
    assert list(tree.leaves_by_path(state)) == ["0/count", "0/mu/w", "0/nu/w"]


def test_paths_are_those_of_a_flax_module():
    variables = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    assert set(tree.leaves_by_path(variables["params"])) == {"kernel", "bias"}


def test_map_by_path_gives_paths_and_further_trees():
    left = {"a": {"b": 1}, "c": 2}
    assert tree.map_by_path(lambda path, x, y: (path, x + y), left, {"a": {"b": 10}, "c": 20}) == {
        "a": {"b": ("a/b", 11)},
        "c": ("c", 22),
    }


def test_describe_names_dtype_and_shape_of_arrays_and_shapes():
    assert tree.describe(jnp.ones((12, 1152))) == "float32[12, 1152]"
    assert tree.describe(jax.ShapeDtypeStruct((), jnp.bfloat16)) == "bfloat16[]"
    assert tree.describe(np.zeros(3, np.int8)) == "int8[3]"
    assert tree.describe("text") == "str 'text'"
    assert len(tree.describe("x" * 1000)) < 80


def test_global_norm_is_that_of_numpy_in_float64():
    rng = np.random.default_rng(0)
    leaves = {"a": rng.normal(size=(5, 7)), "b": [rng.normal(size=3), rng.normal(size=()) + 1j * rng.normal(size=())]}
    exact = np.linalg.norm(np.concatenate([np.ravel(x).astype(np.complex128) for x in jax.tree.leaves(leaves)]))
    given = jax.tree.map(lambda x: jnp.asarray(x, jnp.complex64 if np.iscomplexobj(x) else jnp.float32), leaves)
    np.testing.assert_allclose(tree.global_norm(given), exact, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(tree.global_norm)(given), exact, rtol=1e-6)


def test_global_norm_of_bfloat16_accumulates_in_float32():
    ones = {"a": jnp.ones(4096, jnp.bfloat16), "b": jnp.ones(1, jnp.bfloat16)}
    norm = tree.global_norm(ones)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(norm, np.sqrt(4097), rtol=1e-7)


def test_global_norm_of_nothing_is_zero():
    assert tree.global_norm({}) == 0
    assert tree.global_norm({}).dtype == jnp.float32


def test_size_and_nbytes_count_arrays_and_shapes():
    leaves = {"a": jnp.ones((2, 3)), "b": jax.ShapeDtypeStruct((5,), jnp.bfloat16), "c": np.int8(1)}
    assert tree.size(leaves) == 12
    assert tree.nbytes(leaves) == 24 + 10 + 1
    assert tree.size({}) == tree.nbytes({}) == 0


@pytest.mark.parametrize(
    ("path", "shape", "role"),
    [
        ("dense/kernel", (4, 8), tree.Role("matrix")),
        ("dense/bias", (8,), tree.Role("vector")),
        ("scale", (), tree.Role("vector")),
        ("token_embedding", (256, 8), tree.Role("embedding")),
        ("embed/embedding", (256, 8), tree.Role("embedding")),
        ("patch_embed/kernel", (48, 8), tree.Role("matrix")),
        ("embedded_block/dense/kernel", (4, 8), tree.Role("matrix")),
        ("head/kernel", (8, 256), tree.Role("head")),
        ("decoder/lm_head/kernel", (8, 256), tree.Role("head")),
        ("attention/heads/kernel", (8, 8), tree.Role("matrix")),
        ("conv/kernel", (3, 3, 1, 8), tree.Role("conv")),
        ("blocks/dense/weight", (12, 4, 8), tree.Role("matrix", 1)),
    ],
)
def test_guessed_roles(path, shape, role):
    assert tree.guess_role(path, jax.ShapeDtypeStruct(shape, jnp.float32)) == role
    assert role.name in tree.ROLES


def test_a_declared_role_wins_over_the_guess():
    params = {"blocks": {"kernel": jnp.ones((12, 4, 8)), "bias": jnp.ones((12, 8))}}
    declared = {"blocks/kernel": tree.Role("matrix", 1), "blocks/bias": tree.Role("vector", 1)}
    assert tree.roles(params, declared) == {
        "blocks": {"kernel": tree.Role("matrix", 1), "bias": tree.Role("vector", 1)}
    }
    assert tree.roles(params)["blocks"] == {"kernel": tree.Role("conv"), "bias": tree.Role("matrix")}


PARAMS = {"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}


def test_labels_choose_the_groups_of_an_optax_partition():
    groups = tree.labels(PARAMS, {"matrices": lambda path, leaf: leaf.ndim == 2}, otherwise="rest")
    assert groups == {"dense": {"kernel": "matrices", "bias": "rest"}}
    tx = optax.partition({"matrices": optax.scale(-1.0), "rest": optax.set_to_zero()}, groups)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert float(updates["dense"]["kernel"].sum()) == -12
    assert float(updates["dense"]["bias"].sum()) == 0


def test_labels_name_the_leaf_that_no_rule_matches():
    message = (
        r"tree\.labels: leaf 'dense/bias' float32\[4\] matches no rule\. Tried: \['kernels'\]\. Add otherwise=NAME\."
    )
    with pytest.raises(ValueError, match=message):
        tree.labels(PARAMS, {"kernels": lambda path, leaf: path.endswith("kernel")})


def test_labels_name_the_leaf_that_two_rules_match():
    message = r"tree\.labels: leaf 'dense/kernel' float32\[3, 4\] matches \['a', 'b'\]"
    with pytest.raises(ValueError, match=message):
        tree.labels(PARAMS, {"a": lambda p, x: x.ndim == 2, "b": lambda p, x: x.size > 4}, otherwise="c")


def test_differences_give_one_line_a_leaf():
    left = {"a": jnp.ones(2), "b": jnp.ones(3), "c": jnp.ones(4), "same": jnp.ones(5)}
    right = {"a": jnp.ones(2, jnp.int32), "b": jnp.ones((3, 1)), "d": jnp.ones(4), "same": jnp.zeros(5)}
    assert list(tree.differences(left, right)) == [
        "a: float32[2] against int32[2]",
        "b: float32[3] against float32[3, 1]",
        "c: float32[4] is only in the first",
        "d: float32[4] is only in the second",
    ]
    assert list(tree.differences(left, left)) == []
