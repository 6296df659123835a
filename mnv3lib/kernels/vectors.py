"""Vectors in the loops that Numba compiles: LANES numbers, of channels that lie side by side, in one register.

Numba has no type for them; here is one, and what can be done with it. Where channels are no multiple of LANES, some
lanes of the last vector stay empty.
"""

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model


def _is_wide() -> bool:
    """Whether vectors of sixteen numbers fit a register: AVX-512, unless Numba is told of another processor."""
    told = numba.config.CPU_FEATURES
    return llvm.get_host_cpu_features().get("avx512vl", False) if told is None else "+avx512vl" in told


LINE = 16  # numbers in a line of the cache
CHANNELS = 8  # what numbers of channels are multiples of
LANES = 16 if _is_wide() else CHANNELS


class Vector(types.Type):
    """LANES numbers, of channels that lie side by side."""

    def __init__(self, element, llvm):
        self.element, self.llvm = element, ir.VectorType(llvm, LANES)
        super().__init__(f"Vector({element})")


SINGLE, DOUBLE = Vector(types.float32, ir.FloatType()), Vector(types.float64, ir.DoubleType())


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, kind.llvm)


def vector_of(array):
    return SINGLE if array.dtype == types.float32 else DOUBLE


def address(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    start = builder.gep(array.data, [args[1]])
    return builder.bitcast(start, vector_of(signature.args[0]).llvm.as_pointer())


def _mask(builder, left):
    """The first `left` lanes."""
    kind = ir.VectorType(left.type, LANES)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), left, ir.Constant(ir.IntType(32), 0))
    same = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    several = builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), same)
    return builder.icmp_signed("<", ir.Constant(kind, list(range(LANES))), several)


def _masked(builder, name, result, *args):
    kinds = [arg.type for arg in args]
    element = "f32" if SINGLE.llvm in (result, kinds[0]) else "f64"
    kind = ir.FunctionType(result, kinds)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.{name}.v{LANES}{element}.p0")
    return builder.call(function, args)


ALIGN = ir.Constant(ir.IntType(32), 4)


def load_from(builder, pointer, left):
    """The vector at `pointer`, of which `left` lanes are wanted; the others are 0."""
    if LANES == CHANNELS:
        return builder.load(pointer, align=4)
    vector = pointer.type.pointee
    return _masked(builder, "load", vector, pointer, ALIGN, _mask(builder, left), ir.Constant(vector, None))


def store_to(builder, vector, pointer, left):
    if LANES == CHANNELS:
        return builder.store(vector, pointer, align=4)
    return _masked(builder, "store", ir.VoidType(), vector, pointer, ALIGN, _mask(builder, left))


@intrinsic
def load(typing, array, index, left):
    """The vector from `index` on, of which `left` lanes are wanted; the others are 0."""

    def make(context, builder, signature, args):
        return load_from(builder, address(context, builder, signature, args), args[2])

    return vector_of(array)(array, types.intp, types.intp), make


@intrinsic
def store(typing, array, index, vector, left):
    def make(context, builder, signature, args):
        store_to(builder, args[2], address(context, builder, signature, args), args[3])
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, types.intp), make


def _prefetching(write):
    def prefetch(typing, array, index):
        """Have the cache line with `index` brought near, to be read or written."""

        def make(context, builder, signature, args):
            number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
            kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
            function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            start = builder.bitcast(address(context, builder, signature, args), pointer)
            builder.call(function, [start, number(write), number(2), number(1)])
            return context.get_dummy_value()

        return types.void(array, types.intp), make

    return intrinsic(prefetch)


prefetch, prefetch_to_write = _prefetching(0), _prefetching(1)


@intrinsic
def all_of(typing, number):
    """A vector of one number, as float32."""

    def make(context, builder, signature, args):
        single = builder.fptrunc(args[0], ir.FloatType()) if args[0].type == ir.DoubleType() else args[0]
        one = builder.insert_element(ir.Constant(SINGLE.llvm, ir.Undefined), single, ir.Constant(ir.IntType(32), 0))
        same = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(SINGLE.llvm, ir.Undefined), same)

    return SINGLE(number), make


@intrinsic
def widen(typing, vector):
    """As float64."""
    return DOUBLE(vector), lambda context, builder, signature, args: builder.fpext(args[0], DOUBLE.llvm)


@intrinsic
def add(typing, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def subtract(typing, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fsub(*args)


@intrinsic
def multiply(typing, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fmul(*args)


@intrinsic
def multiply_add(typing, a, b, c):
    """a * b + c, in one instruction where the processor has it."""

    def make(context, builder, signature, args):
        return builder.fadd(builder.fmul(*args[:2], flags=["contract"]), args[2], flags=["contract"])

    return a(a, b, c), make


def read(context, builder, array, value, index, plus=0):
    """The vector of `array` from index + plus on."""
    index = builder.add(index, ir.Constant(index.type, plus))
    start = builder.gep(context.make_array(array)(context, builder, value).data, [index])
    return builder.load(builder.bitcast(start, vector_of(array).llvm.as_pointer()), align=4)


def fused(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])


def _choice(comparison):
    def make(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(comparison, args[0], args[1]), args[2], args[3])

    return make


@intrinsic
def if_less(typing, a, b, then, otherwise):
    """`then` where a < b, else `otherwise`, so also where one of them is no number."""
    return then(a, b, then, otherwise), _choice("<")


@intrinsic
def if_at_most(typing, a, b, then, otherwise):
    return then(a, b, then, otherwise), _choice("<=")


inline = numba.njit(inline="always")


def compiled(loop):
    """Compiled at its first call, and kept for later processes: beside this file, else in the user's cache."""
    try:
        return numba.njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # neither can be written to
        return numba.njit(nogil=True)(loop)


@inline
def three(array, c, channels):
    """From `array` [3, channels], those from the channel c on."""
    left = channels - c
    return load(array, c, left), load(array, channels + c, left), load(array, 2 * channels + c, left)


@inline
def fetch(array, start, count):
    """Have so many numbers from `start` on brought near."""
    for i in range(start, min(start + count, len(array)), LINE):
        prefetch(array, i)
