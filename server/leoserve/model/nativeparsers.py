"""llguidance's parsers through its C interface, which threads that know nothing of Python can call.

The interface is the library's own (github.com/guidance-ai/llguidance, parser/llguidance.h); that the Python package has
its functions in it is not promised. Where they are missing, grammars do with the package's classes.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any

import llguidance
import numpy as np

from leokernels import native
from leoserve.model.parsers import MAX_FORCED, PackagedParsers, Parser, Parsers, Spelling

CONTROL_TOKEN = b"\xff"  # no text begins so
MAX_MESSAGE = 4000  # bytes


class _Limits(Structure):
    """LlgParserLimits."""

    _fields_ = [
        ("max_items_in_row", c_size_t),
        ("initial_lexer_fuel", c_uint64),
        ("step_lexer_fuel", c_uint64),
        ("step_max_items", c_size_t),
        ("max_lexer_states", c_size_t),
        ("max_grammar_size", c_size_t),
        ("precompute_large_lexemes", c_bool),
        ("verbose_errors", c_bool),
    ]


class _Init(Structure):
    """LlgConstraintInit. Newer ones may be longer."""

    _fields_ = [
        ("tokenizer", c_void_p),
        ("log_buffer_level", c_uint32),
        ("log_stderr_level", c_uint32),
        ("ff_tokens_ok", c_bool),
        ("backtrack_ok", c_bool),
        ("limits", _Limits),
        ("newer", c_uint64 * 16),
    ]


class _Tokenizer(Structure):
    """LlgTokenizerInitV2."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("vocab_size", c_uint32),
        ("tok_eos", c_uint32),
        ("token_lens", c_void_p),
        ("token_bytes", c_char_p),
        ("tokenizer_json", c_char_p),
        ("tokenize_assumes_string", c_bool),
        ("tokenize_fn", c_void_p),
        ("use_approximate_greedy_tokenize_fn", c_bool),
        ("tokenize_user_data", c_void_p),
        ("slices", c_void_p),
        ("tok_eos_extra", c_void_p),
        ("tok_eos_extra_count", c_uint32),
    ]


class _Committed(Structure):
    """LlgCommitResult."""

    _fields_ = [("tokens", c_void_p), ("n_tokens", c_uint32), ("is_stop", c_bool)]


class _Allowed(Structure):
    """LlgMaskResult."""

    _fields_ = [("sample_mask", c_void_p), ("temperature", c_float), ("is_stop", c_bool)]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "new_tokenizer_v2": (c_void_p, [POINTER(_Tokenizer), c_void_p, c_size_t]),
    "free_tokenizer": (None, [c_void_p]),
    "constraint_init_set_defaults": (None, [POINTER(_Init), c_void_p]),
    "new_constraint": (c_void_p, [POINTER(_Init), c_char_p]),
    "clone_constraint": (c_void_p, [c_void_p]),
    "free_constraint": (None, [c_void_p]),
    "commit_token": (c_int32, [c_void_p, c_uint32, POINTER(_Committed)]),
    "compute_mask": (c_int32, [c_void_p, POINTER(_Allowed)]),
    "get_error": (c_char_p, [c_void_p]),
}


@cache
def functions() -> Mapping[str, Callable[..., Any]] | None:
    """By their names without "llg_"; None where they are missing, or this server has no threads to call them."""
    if native.missing() is not None:
        return None
    try:
        library = ctypes.CDLL(llguidance._lib.__file__)
        found = {name: getattr(library, f"llg_{name}") for name in _SIGNATURES}
    except (AttributeError, OSError):
        return None
    for name, (result, arguments) in _SIGNATURES.items():
        found[name].restype, found[name].argtypes = result, arguments
    return found


class NativeParser:
    """A parser (LlgConstraint), with the methods of llguidance.LLMatcher. Copies share their lexer's tables."""

    def __init__(self, address: int, found: Mapping[str, Callable[..., Any]], maker: NativeParsers) -> None:
        """`maker` is kept: it has the tokenizer."""
        self.address = address
        self._found = found
        self._maker = maker
        self._stopped = False
        _freed_with(self, found["free_constraint"], address)

    def consume_token(self, token: int) -> bool:
        self._allowed()  # it takes no token before it has said which
        return bool(self._found["commit_token"](self.address, token, byref(_Committed())) == 0)

    def unsafe_compute_mask_ptr(self, address: int, size: int) -> None:
        allowed = self._allowed()
        if allowed.sample_mask or allowed.is_stop:
            ctypes.memmove(address, allowed.sample_mask or self._maker.ends_alone, size)

    def _allowed(self) -> _Allowed:
        """What may come next. Once nothing may, it must not be asked again."""
        told = _Allowed(is_stop=self._stopped)
        if not self._stopped:
            self._found["compute_mask"](self.address, byref(told))
            self._stopped = told.is_stop
        return told

    def is_stopped(self) -> bool:
        return bool(self._allowed().is_stop)

    def is_error(self) -> bool:
        return self._found["get_error"](self.address) is not None

    def get_error(self) -> str:
        return (self._found["get_error"](self.address) or b"").decode(errors="replace")

    def deep_copy(self) -> NativeParser:
        return NativeParser(self._found["clone_constraint"](self.address), self._found, self._maker)


class ParserFollower(native.Follower):
    """Moves such parsers on."""

    def __init__(self, found: Mapping[str, Callable[..., Any]]) -> None:
        functions = found["commit_token"], found["compute_mask"]
        super().__init__(*(ctypes.cast(each, c_void_p).value or 0 for each in functions))  # type: ignore[arg-type]

    def address_of(self, parser: Parser) -> int:
        if not isinstance(parser, NativeParser):
            raise TypeError("not one of llguidance's C parsers")
        return parser.address


class NativeParsers:
    """Parsers for one tokenizer."""

    def __init__(self, spelling: Spelling) -> None:
        """Raises RuntimeError where `functions` is None, ValueError for what llguidance takes for no tokenizer."""
        found = functions()
        if found is None:
            raise RuntimeError("llguidance's C functions cannot be used here")
        self._found = found
        flags = np.zeros(-(-len(spelling.tokens) // 32) * 32, dtype=np.bool_)
        flags[spelling.ends] = True
        self.ends_alone = np.packbits(flags, bitorder="little").tobytes()  # the mask of one that can only end
        control = set(spelling.special_token_ids)
        text = [b"" if number in control else piece for number, piece in enumerate(spelling.tokens)]
        self._speller = native.Speller(text, MAX_FORCED)
        self._tokenizer = self._new_tokenizer(spelling, control)
        _freed_with(self, found["free_tokenizer"], self._tokenizer)
        self.follower = ParserFollower(found)

    def _new_tokenizer(self, spelling: Spelling, control: set[int]) -> int:
        marked = [CONTROL_TOKEN + piece if number in control else piece for number, piece in enumerate(spelling.tokens)]
        lengths = np.array([len(piece) for piece in marked], dtype=np.uint32)
        first, *others = spelling.ends
        extra = np.array(others, dtype=np.uint32)
        told = _Tokenizer(
            struct_size=ctypes.sizeof(_Tokenizer),
            vocab_size=len(marked),
            tok_eos=first,
            token_lens=lengths.ctypes.data,
            token_bytes=b"".join(marked),
            tokenize_assumes_string=True,
            tokenize_fn=self._speller.function,
            tokenize_user_data=self._speller.address,
            tok_eos_extra=extra.ctypes.data,
            tok_eos_extra_count=len(extra),
        )
        message = ctypes.create_string_buffer(MAX_MESSAGE)
        address = self._found["new_tokenizer_v2"](byref(told), message, len(message))
        if address is None:
            raise ValueError(message.value.decode(errors="replace"))
        return int(address)

    def defaults(self) -> _Init:
        """What llguidance takes where nothing is said, of what is newer than this file, too."""
        told = _Init()
        self._found["constraint_init_set_defaults"](byref(told), self._tokenizer)
        return told

    def new(self, source: str, limits: Mapping[str, int]) -> Parser:
        """Of a grammar in llguidance's JSON. One that cannot be compiled has an error."""
        told = self.defaults()
        told.log_buffer_level = told.log_stderr_level = 0
        told.limits.verbose_errors = False
        for name, bound in limits.items():
            setattr(told.limits, name, bound)
        address = self._found["new_constraint"](byref(told), source.encode())
        return NativeParser(address, self._found, self)


def _freed_with(holder: object, free: Callable[[int], None], address: int) -> None:
    """Free what is at an address when its holder goes. Not at the process' end: a thread may be using it."""
    weakref.finalize(holder, free, address).atexit = False


def parsers_for(device: str) -> Callable[[Spelling], Parsers]:
    """What follows answers best where this device computes.

    The threads of the CPU's kernels, between two steps; where a device computes, llguidance's own threads meanwhile.
    """
    return _native_parsers if device == "cpu" and functions() is not None else PackagedParsers


def _native_parsers(spelling: Spelling) -> Parsers:
    """These, if any text can be spelled.

    Through the C interface a parser without a token for what must come cannot be told from one at its end.
    """
    return NativeParsers(spelling) if spelling.has_all_text else PackagedParsers(spelling)
