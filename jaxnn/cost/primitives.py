"""Which primitives are arithmetic, and which do no floating-point work at all."""

ARITHMETIC = frozenset({
    "abs", "add", "add_any", "ceil", "clamp", "conj", "div", "floor", "max", "min", "mul", "neg", "nextafter",
    "rem", "round", "sign", "square", "sub",
})  # fmt: skip
TRANSCENDENTAL = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "cos",
    "cosh", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "igamma", "igamma_grad_a", "igammac",
    "lgamma", "log", "log1p", "log2", "logistic", "polygamma", "pow", "regularized_incomplete_beta", "rsqrt",
    "sin", "sinh", "sqrt", "tan", "tanh", "zeta",
})  # fmt: skip
LOGIC = frozenset({
    "and", "clz", "eq", "eq_to", "ge", "gt", "is_finite", "le", "le_to", "lt", "lt_to", "ne", "not", "or",
    "population_count", "reduce_and", "reduce_or", "reduce_xor", "shift_left", "shift_right_arithmetic",
    "shift_right_logical", "xor",
})  # fmt: skip
RANDOM_BITS = frozenset({
    "iota_2x32_shape", "philox2x32", "philox4x32", "prng_join", "prng_seed", "prng_split", "random_bits",
    "random_clone", "random_fold_in", "random_seed", "random_split", "random_unwrap", "random_wrap",
    "rng_bit_generator", "rng_uniform", "threefry2x32", "threefry4x32",
})  # fmt: skip
# Bytes on the wire, which `cost.collectives` counts.
COLLECTIVES = frozenset({
    "all_gather", "all_gather_done", "all_gather_invariant", "all_gather_reduced", "all_gather_reduced_start",
    "all_gather_start", "all_to_all", "all_to_all_done", "all_to_all_start", "axis_index", "copy_to_host_shard",
    "pbroadcast", "pbroadcast_done", "pbroadcast_dynamic", "pbroadcast_start", "pcast", "pmax",
    "pmin", "ppermute", "ppermute_done", "ppermute_start", "precv", "preduced", "psend", "psum", "psum2",
    "psum_done", "psum_invariant", "psum_invariant_start", "psum_start", "pvary",
    "ragged_all_to_all", "reduce_scatter", "reduce_scatter_done", "reduce_scatter_start", "reduced_vary_cast",
    "reshard", "unreduced_pmax", "unreduced_pmin", "unreduced_psum", "unreduced_psum_start",
    "unreduced_reduce_scatter", "unreduced_reduce_scatter_start", "vary_unreduced_cast",
})  # fmt: skip
# Sorting and top_k compare, which is not floating-point work; `bytes_by` has their traffic.
MOVEMENT = frozenset({
    "add_dependency", "after_all", "approx_top_k", "bitcast_convert_type", "broadcast_in_dim",
    "broadcast_to", "check", "complex", "concatenate", "convert_element_type", "copy", "create_token",
    "dce_sink", "debug_callback", "debug_print", "device_put", "dim_as_value", "dimension_size",
    "dynamic_slice", "dynamic_update_slice", "empty", "empty2", "empty_ref", "free_ref",
    "freeze", "from_edtype", "full", "gather", "get", "imag", "inspect_sharding", "iota", "iota_2x32_shape",
    "layout_cast", "layout_constraint", "mesh_cast", "name", "new_ref", "optimization_barrier", "pad",
    "pin", "platform_index", "real", "reduce_precision", "reshape", "rev", "scatter", "select_n",
    "shape_assertion", "shard_alike", "sharding_constraint", "slice", "sort", "split", "squeeze", "stack",
    "stop_gradient", "swap", "tie", "tile", "to_edtype", "top_k", "trace_value", "transpose", "unpin",
    "unreachable", "unstack", "xla_metadata_value", "zeros_like",
})  # fmt: skip
PRODUCTS = frozenset({
    "conv_general_dilated", "dot_general", "ragged_dot_general", "scaled_matmul",
})  # fmt: skip
# They hold a jaxpr of one block's work, or call code that jax can't see: what they cost isn't in the program.
OPAQUE = frozenset({
    "core_map", "ffi_call", "io_callback", "pallas_call", "pure_callback",
})  # fmt: skip
ZERO = LOGIC | RANDOM_BITS | COLLECTIVES | MOVEMENT
