"""The state of one sampling run: the active techniques, the model's anatomy, and which layers were reached."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from torch import nn

from ..techniques.technique import Technique
from .carrying import Carrying
from .host_attention import preferred_attention
from .prefix import layers_before
from .sites import Inserts, NoSuchSiteError, Site, features_of, layers_of, sites_in_run
from .steps import Steps, is_between


@dataclass(frozen=True, eq=False)
class Tapped:
    """A technique, where and when. ``network``: the class of the diffusion model that it was put on; ``optional``: of
    ``sites`` those that a run need not reach."""

    technique: Technique
    asked_by: str
    sites: frozenset[str]
    start_percent: float
    end_percent: float
    network: str
    optional: frozenset[str] = frozenset()

    def is_active(self, sigma: float, model_sampling: Any) -> bool:
        return is_between(sigma, self.start_percent, self.end_percent, model_sampling)


@dataclass(frozen=True)
class Anatomy:
    """What every model call needs to know about the model; finding it takes milliseconds."""

    sites: dict[str, Site]
    before: Callable[[frozenset[str]], list[nn.Module]]
    """The layers that end before the first of these sites."""
    preferred: Callable[[str], Callable | None]
    """The attention that a checkpoint asks for at a site."""
    features: dict[str, Site] = field(default_factory=dict)
    """The convolutional and residual blocks."""

    @classmethod
    def of(cls, diffusion_model: nn.Module, inserted: Iterable[Inserts], patched: Mapping[str, str]) -> Anatomy:
        sites = {site.name: site for site in sites_in_run(diffusion_model, inserted, patched)}

        @lru_cache(maxsize=8)
        def before(names: frozenset[str]) -> list[nn.Module]:
            parting = {sites[name].within or sites[name].module for name in names if name in sites}
            return layers_before(layers_of(diffusion_model), parting)

        @cache
        def preferred(name: str) -> Callable | None:
            return preferred_attention(sites[name].module)

        return cls(sites, before, preferred, {site.name: site for site in features_of(diffusion_model)})


@dataclass
class Run:
    """What one sampling run has seen; shared by its threads."""

    steps: Steps | None = None
    asked: list[Tapped] = field(default_factory=list)
    reached: set[tuple[Tapped, str]] = field(default_factory=set)
    carrying: dict[Tapped, Carrying] = field(default_factory=dict)
    """Of the techniques whose memory outlives the run."""
    frames: int = 0
    """Of the clip, in its rows."""
    numbers: tuple[int, ...] | None = None
    """Of these frames in the whole clip; None where they are 0, 1, 2 ..."""
    size: tuple[int, ...] | None = None
    """Height and width of its latents; None where several modalities are packed."""
    _anatomies: dict[nn.Module, Anatomy] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def anatomy_of(self, diffusion_model: nn.Module, inserted: Iterable[Inserts]) -> Anatomy:
        """Found once a run: during it, nothing is inserted or taken out."""
        with self._lock:
            if diffusion_model not in self._anatomies:
                patched = {each.asked_by: each.network for each in self.asked}
                self._anatomies[diffusion_model] = Anatomy.of(diffusion_model, inserted, patched)
            return self._anatomies[diffusion_model]

    def numbers_of(self, frame_indices: tuple[int, ...]) -> tuple[int, ...] | None:
        """The numbers in the whole clip of some of the run's frames."""
        if self.numbers is None or max(frame_indices) >= len(self.numbers):
            return None
        return tuple(self.numbers[index] for index in frame_indices)

    def ask(self, active: list[Tapped]) -> None:
        with self._lock:
            self.asked += [tapped for tapped in active if tapped not in self.asked]

    def require_all_reached(self) -> None:
        for tapped in self.asked:
            missed = sorted(tapped.sites - tapped.optional - {name for who, name in self.reached if who == tapped})
            if needs := self._needs(missed):
                raise NoSuchSiteError(
                    f"{tapped.asked_by} asked for attention layers that run only with {' and '.join(needs)}, and this "
                    f"run had none: {', '.join(missed)}. Give the model {' and '.join(needs)}, or leave them out of "
                    "'layers'."
                )
            if missed:
                raise NoSuchSiteError(
                    f"{tapped.asked_by} asked for attention layers that the model never reached in this run: "
                    f"{', '.join(missed)}. Another node may have replaced these blocks; leave them out of 'layers', "
                    "or remove that node."
                )

    def _needs(self, names: Iterable[str]) -> list[str]:
        """What the sites ``names`` lacked; empty where one of them needs nothing."""
        sites = (anatomy.sites.get(name) for name in names for anatomy in self._anatomies.values())
        needs = [site.needs for site in sites if site is not None]
        return sorted({*needs}) if all(needs) else []
