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
    "random_bits", "random_clone", "random_fold_in", "random_seed", "random_split", "random_unwrap",
    "random_wrap", "rng_bit_generator", "rng_uniform", "threefry2x32",
})  # fmt: skip
# Bytes on the wire, which `cost.collectives` counts.
COLLECTIVES = frozenset({
    "all_gather", "all_gather_invariant", "all_gather_reduced", "all_to_all", "axis_index",
    "copy_to_host_shard", "pbroadcast", "pcast", "pgather", "pmax", "pmin", "ppermute", "precv", "preduced",
    "psend", "psum", "psum2", "psum_invariant", "psum_scatter", "pvary", "ragged_all_to_all", "reduce_scatter",
    "reshard", "unreduced_psum", "unreduced_reduce_scatter", "vary_unreduced_cast",
})  # fmt: skip
# Sorting and top_k compare, which is not floating-point work; `bytes_by` has their traffic.
MOVEMENT = frozenset({
    "after_all", "approx_top_k", "array_ref", "bitcast_convert_type", "broadcast_in_dim", "complex",
    "concatenate", "convert_element_type", "copy", "copy_p", "create_token", "debug_callback", "debug_print",
    "device_put", "dynamic_slice", "dynamic_update_slice", "empty", "empty2", "expand_dims", "freeze", "full",
    "gather", "get", "imag", "iota", "layout_constraint", "mesh_cast", "name", "name_p", "new_ref",
    "optimization_barrier", "pad", "real", "reduce_precision", "ref", "reshape", "rev", "scatter", "select_n",
    "sharding_constraint", "slice", "sort", "split", "squeeze", "stop_gradient", "swap", "tie", "tie_in",
    "top_k", "transpose",
})  # fmt: skip
PRODUCTS = frozenset({
    "conv_general_dilated", "dot_general", "ragged_dot_general",
})  # fmt: skip
# They hold a jaxpr of one block's work, or call code that jax can't see: what they cost isn't in the program.
OPAQUE = frozenset({
    "core_map", "ffi_call", "io_callback", "pallas_call", "pure_callback",
})  # fmt: skip
ZERO = LOGIC | RANDOM_BITS | COLLECTIVES | MOVEMENT
