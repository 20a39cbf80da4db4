"""What :mod:`ie_guidance_study` draws: guidances, measures, and the settings of stills and clips."""

from __future__ import annotations

from dataclasses import dataclass

from harness import FULL, OPEN, SAYS

PLAIN = "plain CFG"
PAIRS = ("A-I", "U-A", "U-I", "strategy 3")
LONE = ("strategy 1", "strategy 4")
GUIDANCES = (*PAIRS, *LONE)
MEASURES = {
    "obeys": ("obeys the prompt", ".1%"),
    "form": ("form", ".3f"),
    "sharpness": ("sharpness", ".3f"),
    "grain": ("grain", ".2f"),
    "ssim": ("SSIM of neighbouring frames", ".3f"),
    "moves": ("moves as the prompt says", ".1%"),
}
QUALITIES = {"form": 1, "sharpness": 1, "grain": -1}
"""What stands in for the paper's aesthetic and imaging scores, and which way is better."""
VIDEO_FRAMES = 16
"""Of the clips that the video model learned from."""


def way_name(guidance: str, scale: float) -> str:
    return guidance if guidance in LONE else f"{guidance} λ={scale:g}"


@dataclass(frozen=True)
class Setting:
    """What is drawn for each scene: ``pictures`` of the prompt, or as many frames of a clip."""

    title: str
    steps: int
    sampler: str
    says: tuple[str, ...]
    scales: tuple[float, ...]
    pictures: int
    is_clip: bool = False
    cfg: float = 5.0
    scheduler: str = "karras"
    every: int = 1
    """Of the scenes, how many make one that is drawn."""
    measured: str = "0"
    """At which steps the entropy is taken: at the first, as the node does unless told otherwise, or "all"."""
    guidances: tuple[str, ...] = GUIDANCES

    @property
    def ways(self) -> dict[str, tuple[str, float] | None]:
        """Name → guidance and λ; strategies 1 and 4 have no λ."""
        pairs = [(guidance, scale) for guidance in PAIRS for scale in self.scales]
        lone = [(guidance, 1.0) for guidance in LONE]
        chosen = [each for each in pairs + lone if each[0] in self.guidances]
        return {PLAIN: None} | {way_name(*each): each for each in chosen}


EVERYTHING, LOOK = SAYS[FULL], SAYS[OPEN]
IMAGE = {
    "usual": Setting("stills, 8 steps", 8, "dpmpp_2m", EVERYTHING, (1.0, 2.0, 4.0), 2),
    "late": Setting(
        "stills, 8 steps, layer by its entropy over all steps", 8, "dpmpp_2m", EVERYTHING, (2.0,), 2, measured="all"
    ),
    "free": Setting("stills, 8 steps, cfg 1.5", 8, "dpmpp_2m", EVERYTHING, (1.0, 2.0, 4.0), 2, cfg=1.5),
    "hasty": Setting("stills, 4 steps", 4, "euler", EVERYTHING, (1.0, 2.0, 4.0), 2),
    "clips": Setting("clips of 6 frames", 8, "dpmpp_2m", LOOK, (2.0,), 6, is_clip=True, every=2),
}
BOTH = {"is_clip": True, "guidances": ("A-I", "U-I")}
VIDEO = {
    "video": Setting("clips, 8 steps", 8, "dpmpp_2m", LOOK, (2.0,), VIDEO_FRAMES, **BOTH),
    "video free": Setting("clips, 8 steps, cfg 1.5", 8, "dpmpp_2m", LOOK, (2.0,), VIDEO_FRAMES, cfg=1.5, **BOTH),
}
VIDEO["spins"] = Setting("clips that spin, 8 steps", 8, "dpmpp_2m", LOOK, (2.0,), VIDEO_FRAMES, **BOTH)
MOTION_OF = {"spins": "spinning"}
"""The motion of all its clips, where that is not drawn. The model seldom spins a shape as it is told, and warps it: as
the paper chose prompts whose clips have faults, guidance has something to gain there."""
SETTINGS = IMAGE | VIDEO
KINDS = {"image": IMAGE, "video": VIDEO}
