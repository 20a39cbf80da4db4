"""Momentum that outlives a run: what one technique takes from the run before, and keeps of this one for the next.

During a run every layer's averages are in the technique's memory, as they are between chunks of frames
(:mod:`.chunks`). Here they are put there before the first frames of a call, and taken out after its last ones, branch
by branch: a branch is told by its conditioning's place, as uuids are new in every run.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from comfy.model_management import get_free_memory
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..noise.numbers import Told, told_of
from ..techniques.branches import Branch, Copy, OfClip
from ..techniques.kept import Momentum, MomentumError, RunFacts, gibibytes, name, place, same_level

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from .run import Run, Tapped

T = TypeVar("T")
_SAMPLED = 16
"""Norms and biases, or patches, that a fingerprint looks at, about."""


class Carrying:
    """Of one technique, in one run. ``steps``: at how many of the run's steps it acts; ``labels``: by uuid the name of
    a conditioning."""

    def __init__(
        self,
        asked_by: str,
        facts: RunFacts,
        labels: Mapping[Any, str],
        steps: int,
        previous: Momentum | None,
        keeps: bool,
    ) -> None:
        if previous is not None:
            facts.require_goes_on(previous.facts)
        self._asked_by, self._facts, self._labels = asked_by, facts, labels
        self._steps, self._previous, self._keeps = steps, previous, keeps
        self._levels: dict[str, list[float]] = {}
        self._tensors: dict[str, Tensor] = {}
        self._first_level: float | None = None
        self._is_told = not keeps
        self._lock = threading.Lock()

    def begin(self, layer: str, branches: Sequence[Branch], sigma: float, like: Tensor) -> dict[str, Tensor]:
        """The memory with which ``branches`` begin at ``layer`` in this model call: what the run before kept."""
        places = [place(layer, branch) for branch in self._names(branches)]
        with self._lock:
            self._tell_size(sigma)
            for each in places:
                self._levels.setdefault(each, []).append(sigma)
            calls = [len(self._levels[each]) - 1 for each in places]
        if self._previous is None:
            return {}
        dtype = torch.promote_types(like.dtype, torch.float32)

        def kept(part: str) -> Tensor:
            found = [self._found(each, call, part, sigma) for each, call in zip(places, calls, strict=True)]
            return torch.stack(found).unsqueeze(1).to(like.device, dtype)

        return {part: kept(part) for part in "kv"}

    def end(
        self, layer: str, branches: Sequence[Branch], memory: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
    ) -> None:
        """Keeps what ``branches`` have in ``memory`` after the last frame of the call."""
        if not self._keeps:
            return
        there = {part: memory[part].flatten(1).to("cpu", dtypes[part]) for part in "kv"}
        for position, branch in enumerate(self._names(branches)):
            here = place(layer, branch)
            with self._lock:
                call = len(self._levels[here]) - 1
                self._tensors |= {name(here, call, part): x[position].clone() for part, x in there.items()}

    def momentum(self, frame: int) -> Momentum:
        """What the run kept, whose last frame has the number ``frame``."""
        levels = {each: tuple(sigmas) for each, sigmas in self._levels.items()}
        return Momentum(self._facts, frame, levels, self._tensors)

    def _names(self, branches: Sequence[Branch]) -> list[str]:
        """Of each branch; the same in every run of the same conditionings."""
        names, seen = [], Counter[str]()
        for index, tag in branches:
            extra = f".{tag.role}" if isinstance(tag, Copy) else f".clip{tag.clip}" if isinstance(tag, OfClip) else ""
            uuid = tag.of if isinstance(tag, Copy | OfClip) else tag
            text = f"{index}.{self._labels.get(uuid, 'other')}{extra}"
            seen[text] += 1
            names.append(text if seen[text] == 1 else f"{text}.{seen[text]}")
        return names

    def _found(self, where: str, call: int, part: str, sigma: float) -> Tensor:
        assert self._previous is not None
        levels = self._previous.levels.get(where, ())
        if call >= len(levels):
            layer, _, branch = where.partition("/")
            raise MomentumError(
                f"{self._asked_by}: previous has {len(levels)} model calls of the conditioning {branch} at layer "
                f"{layer}, this run needs call {call + 1}, at noise level {sigma:.4g}. The run that kept it had "
                "another cfg, sampler, start_percent or end_percent: use the same in both."
            )
        if not same_level(levels[call], sigma):
            raise MomentumError(
                f"{self._asked_by}: the model's call {call + 1} was at noise level {levels[call]:.4g} in the run that "
                f"previous was kept by, and is at {sigma:.4g} in this one. Use the same sampler, steps and scheduler "
                "in both."
            )
        return self._previous.tensors[name(where, call, part)]

    def _tell_size(self, sigma: float) -> None:
        """Before the second step, the size of all that follow. MomentumError where it does not fit into memory."""
        if self._first_level is None:
            self._first_level = sigma
        if self._is_told or same_level(sigma, self._first_level):
            return
        self._is_told = True
        so_far = sum(tensor.nbytes for tensor in self._tensors.values())
        total = so_far * self._steps
        free = get_free_memory(torch.device("cpu"))
        logging.info(
            "%s: keeps %s of each step, about %s of RAM for the %d steps of this run (%s free)",
            self._asked_by,
            gibibytes(so_far),
            gibibytes(total),
            self._steps,
            gibibytes(free),
        )
        if total - so_far > free:
            raise MomentumError(
                f"{self._asked_by}: keep needs about {gibibytes(total)} of RAM for the {self._steps} steps of this run,"
                f" and {gibibytes(free)} are free. Turn keep off, use fewer steps, a smaller latent or fewer layers, "
                "or free memory."
            )


def labels_of(conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[Any, str]:
    """The names of a guider's conditionings, by uuid: positive, negative, positive.2 ..."""
    return {
        cond.get("uuid"): side if number == 0 else f"{side}.{number + 1}"
        for side, some in conds.items()
        for number, cond in enumerate(some or ())
    }


def model_facts(model: ModelPatcher) -> str:
    """Class, dtype and fingerprints of a model's weights and of its patches, as LoRAs are."""
    patched = model.backup
    network = model.model.diffusion_model
    vectors = [(key, weight) for key, weight in network.named_parameters() if weight.ndim == 1 and len(weight) >= 8]
    digest = blake2b(digest_size=4)
    for key, weight in _some(vectors):
        there = patched.get(f"diffusion_model.{key}")
        digest.update(_first_values(weight if there is None else there.weight))
    dtype = str(model.model_dtype()).removeprefix("torch.")
    patches = {key: some for key, some in model.patches.items() if key.startswith("diffusion_model.")}
    loras = f", LoRAs {_fingerprint(patches)}" if patches else ""
    return f"{type(model.model.model_config).__name__} ({dtype}, weights {digest.hexdigest()}{loras})"


def _fingerprint(patches: Mapping[str, Sequence[tuple[Any, ...]]]) -> str:
    """Of all keys and strengths, and of some weights; the order in which a key's patches were added is no matter."""
    digest, items = blake2b(digest_size=4), sorted(patches.items())
    sampled = {key for key, _ in _some(items)}
    for key, some in items:
        digest.update(key.encode())
        for strengths in sorted((float(each[0]), float(each[2])) for each in some):
            digest.update(repr(strengths).encode())
        if key in sampled:
            for values in sorted(b"".join(map(_first_values, _tensors(patch))) for _, patch, *_ in some):
                digest.update(values)
    return digest.hexdigest()


def _tensors(patch: Any) -> Iterator[Tensor]:
    """Of a patch as ComfyUI keeps it: an adapter, or a tuple of tensors and other things."""
    if isinstance(patch, Tensor):
        yield patch
    for part in patch if isinstance(patch, tuple | list) else getattr(patch, "weights", None) or ():
        yield from _tensors(part)


def _some(items: Sequence[T]) -> Sequence[T]:
    return items[:: max(len(items) // _SAMPLED, 1)]


def _first_values(weight: Tensor) -> bytes:
    return weight.detach().flatten()[:8].float().cpu().numpy().tobytes()


def frame_numbers(frames: int, told: Told | None, previous: Sequence[Momentum]) -> tuple[int, ...] | None:
    """The numbers of a run's frames in the whole clip; None where nothing tells any but 0, 1, 2 ...

    MomentumError where the noise and what is carried on tell different ones.
    """
    starts = {each.frame + 1 for each in previous}
    if len(starts) > 1:
        raise MomentumError(
            f"The model has momentum of several clips, which would go on at frames {', '.join(map(str, starts))}. "
            "Connect momentum of one run to all its nodes."
        )
    if told is not None:
        numbers = told.numbers(frames)
        if starts and numbers[0] not in starts:
            raise MomentumError(
                f"previous holds the momentum of frame {min(starts) - 1}, so this clip begins at frame {min(starts)}, "
                f"but its noise begins at frame {numbers[0]}. Continue noise and momentum from the same run."
            )
        return numbers
    return tuple(range(start := min(starts), start + frames)) if starts else None


def carry_on(run: Run, techniques: Sequence[Tapped], guider: Any, noise: Tensor, sigmas: Tensor) -> None:
    """Before a run of ``guider``: the numbers of its frames, and what its ``techniques`` carry over its ends.

    MomentumError where that does not fit this run.
    """
    by_row = not noise.is_nested and (noise.ndim == 4 or (noise.ndim == 5 and noise.shape[2] == 1))
    carried = [each for each in techniques if each.technique.previous is not None or each.technique.kept is not None]
    if not by_row:
        if carried:
            raise MomentumError(
                f"{carried[0].asked_by}: the latent has shape {tuple(noise.shape)}, expected a clip whose frames are "
                "its batch. Leave previous empty and keep off."
            )
        return
    run.frames = len(noise)
    previous = [each.technique.previous for each in carried if each.technique.previous is not None]
    run.numbers = frame_numbers(len(noise), told_of(noise), previous)
    if not carried:
        return
    model, labels = guider.model_patcher, labels_of(guider.conds)
    sampling = model.get_model_object("model_sampling")
    levels, of_model = tuple(float(sigma) for sigma in sigmas), model_facts(model)
    for each in carried:
        facts = RunFacts(of_model, tuple(noise.shape[1:]), levels, tuple(labels.values()), tuple(sorted(each.sites)))
        steps = sum(each.is_active(sigma, sampling) for sigma in levels[:-1])
        technique = each.technique
        keeps = technique.kept is not None
        if technique.kept is not None:
            technique.kept.forget(_sampler())
        run.carrying[each] = Carrying(each.asked_by, facts, labels, steps, technique.previous, keeps)


def require_whole_clip(run: Run, rows: int) -> None:
    """MomentumError where a model call has ``rows`` rows of a branch, and not all frames of the clip."""
    if run.carrying and rows != run.frames:
        raise MomentumError(
            f"{next(iter(run.carrying)).asked_by}: the model is called with {rows} of the clip's {run.frames} frames "
            "(context windows), and each window starts an average of its own, which no other run can continue. Leave "
            "previous empty and keep off, or use frames_per_batch instead of context windows."
        )


def keep(run: Run, output: Tensor) -> None:
    """After a run that ended well with ``output``: its momentum is there for the next one."""
    numbers = run.numbers or range(run.frames)
    for tapped, carrying in run.carrying.items():
        if tapped.technique.kept is not None:
            momentum = carrying.momentum(numbers[-1])
            tapped.technique.kept.put(_sampler(), output, momentum)
            logging.info("%s: kept %s", tapped.asked_by, momentum.said())


def _sampler() -> tuple[str, int | None] | None:
    """The node that samples, as ComfyUI tells it."""
    context = get_executing_context()
    return None if context is None else (context.node_id, context.list_index)
