# SPDX-License-Identifier: Apache-2.0
"""Reading tensors from files, and putting them into models, with errors that name them."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor, nn

State = dict[str, Tensor]
_SafetensorError = safetensors.SafetensorError
_SHOWN = 8  # names in a message; a wrong architecture misses hundreds
# Where training scripts put the state_dict, beside their optimiser's and other things.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "net", "weights", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, wrappers


def read_state(path: Path) -> tuple[State, dict[str, str]]:
    """All tensors of a file, and its metadata (empty for pickled files).

    A safetensors file is read as such; anything else as torch's, of which nothing but tensors,
    plain containers and the arguments of a script is unpickled (``weights_only=True``).

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, holds more than tensors, or is no file of weights.
    """
    with path.open("rb") as file:
        head = file.read(9)
    # 8 bytes: length of the header; then the header, a JSON object.
    if len(head) == 9 and head[8:] == b"{":
        return _read_safetensors(path)
    try:
        # torchvision's own training script keeps its arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        LookupError,
        ValueError,
        _SafetensorError,
    ) as error:
        raise _unreadable(path, head, error) from error
    return _find_state(path, content), {}


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            return state, file.metadata() or {}
    except _SafetensorError as error:
        raise ValueError(
            f"load: {path} must be a complete safetensors file; it is damaged ({error})"
        ) from error


def _unreadable(path: Path, head: bytes, error: Exception) -> ValueError:
    """The error for a file that torch refused; ``head`` is what it begins with."""
    if not head.startswith((b"PK", b"\x80")):  # neither torch's archive nor a pickle
        return ValueError(
            f"load: {path} must be a complete safetensors or torch file of weights; it is damaged "
            f"or of another kind (it begins with {head!r})"
        )
    if isinstance(error, pickle.UnpicklingError):
        return ValueError(
            f"load: {path} must hold tensors only, and this file also holds objects whose code "
            f"could do anything, or is damaged ({_first_line(error)}). Read it where you trust it "
            "and save its state_dict"
        )
    return ValueError(
        f"load: {path} must be a complete safetensors or torch file; it is damaged or of another "
        f"kind ({_first_line(error)})"
    )


def _find_state(path: Path, content: Any) -> State:
    """The tensors by name within what was unpickled, without wrappers and their prefixes."""
    if isinstance(content, Mapping) and {"format", "identity", "position", "model"} <= set(content):
        raise ValueError(
            f"load: {path} must be a file of weights, got the checkpoint of a training, to go on "
            "from with --resume. Weights are beside it: those of the best epoch so far in "
            "best.safetensors, those of the end in last.safetensors. It says not all settings of "
            "its model: if you build that, model.load_state_dict(torch.load(path)['model']) fills "
            "it"
        )
    while isinstance(content, Mapping):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        raise ValueError(
            f"load: {path} must hold tensors by name (a state_dict), got {type(content).__name__}"
        )
    names = [name for name in content if isinstance(name, str)]
    state = {name: content[name] for name in names if isinstance(content[name], Tensor)}
    if not state or len(names) < len(content):
        raise ValueError(
            f"load: {path} must hold tensors by name (a state_dict), itself or within one of "
            f"{', '.join(_WRAPPERS)}; got {_some(map(repr, content)) or 'nothing'}"
        )
    return _without_prefixes(state)


def _without_prefixes(state: State) -> State:
    """The names of the wrapped model, however often and in whichever order it was wrapped."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            bare = {name.removeprefix(prefix): value for name, value in state.items()}
            return _without_prefixes(bare)
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fills a model; every tensor must be there, wanted, and of the right shape.

    Raises:
        ValueError: With the names of missing, unexpected and misshapen tensors.
    """
    check_state(model.state_dict(), state, source, type(model).__name__)
    model.load_state_dict(dict(state))


def check_state(
    wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str, title: str
) -> None:
    """Compares names and shapes of what a file has with those of what is to be filled.

    Args:
        wanted: What is to be filled; may lie on the meta device.
        state: What the file has.
        source: The file, for the message.
        title: What is to be filled, likewise.

    Raises:
        ValueError: With the names of missing, unexpected and misshapen tensors.
    """
    problems = []
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    misshapen = [
        f"{name} ({list(state[name].shape)} in the file, {list(value.shape)} in the model)"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    for kind, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", misshapen),
    ):
        if names:
            problems.append(f"{len(names)} {kind}: {_some(names)}")
    if problems:
        raise ValueError(
            f"load: {source} must hold the tensors of {title}, but of them are "
            + "; ".join(problems)
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _first_line(error: Exception) -> str:
    """The first line of an error, without colours; of torch's long texts the one that says why."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    reason = re.search("unsupported global.*", text, re.IGNORECASE)
    return (reason.group() if reason else text).splitlines()[0].partition(". Please")[0][:200]
