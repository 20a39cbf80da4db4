"""What :mod:`zs2_study` draws, and what ZS² claims of them.

No full cross of all that the paper turns: noises × attentions, μ at λ = 0.1 and λ at μ = 0.98, as in the grids of its
demonstration. Noises are compared at μ = 0.95, as in Figs. 7 to 9. The main comparison is that of dependency noise with
mixed and progressive noise whose neighbouring frames correlate as its own do: at the paper's α = 0.5 they correlate
less, and a clip is less steady for that reason alone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Way:
    """One way of drawing a clip. ``strength``: α of the priors, λ of dependency noise; ``mu``: of momentum;
    ``candidates``: of the paper's random search, 0 for orthogonal ones."""

    noise: str
    strength: float
    attention: str
    mu: float = 0.0
    candidates: int = 0

    @property
    def noise_name(self) -> str:
        symbol = {"iid": "", FIELD: "", "dependency": f" λ={self.strength:g}"}.get(self.noise, f" α={self.strength:g}")
        searched = f" best of {self.candidates}" if self.candidates else ""
        return {"iid": "i.i.d."}.get(self.noise, self.noise) + symbol + searched

    @property
    def attention_name(self) -> str:
        return f"momentum μ={self.mu:g}" if self.attention == "momentum" else ATTENTIONS[self.attention]

    @property
    def name(self) -> str:
        return f"{self.noise_name}, {self.attention_name}"


FIELD = "motion field"
"""Text2Video-Zero's start, in the place of a noise."""
ATTENTIONS = {
    "self": "self-attention",
    "first": "first frame",
    "first_and_previous": "sparse-causal",
    "momentum": "momentum",
}
MU, KL = 0.98, 0.01
"""The paper's defaults."""
FIGURES_MU = 0.95
"""Of Figs. 7 to 9, which compare noises."""
SWEPT_KL = 0.1
"""λ of the sweep of μ."""
MATCHED = {"mixed": 0.994, "progressive": 0.988}
"""α with which neighbours correlate as those of dependency noise at ``KL``, by 1 − λ/√e = 0.994: α and √α."""
MUS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0)
KLS = (0.0, 0.01, 0.05, 0.1, 0.25)
NOISES = (("iid", 0.0), ("mixed", 0.5), ("progressive", 0.5), ("dependency", KL))

CROSS = [Way(*noise, attention, FIGURES_MU * (attention == "momentum")) for noise in NOISES for attention in ATTENTIONS]
CONTROL = {noise: Way(noise, alpha, "momentum", FIGURES_MU) for noise, alpha in MATCHED.items()}
BY_MU = [Way("dependency", SWEPT_KL, "momentum", mu) for mu in MUS]
BY_KL = [Way("dependency", kl, "momentum", MU) for kl in KLS]
T2V_ZERO = Way(FIELD, 0.0, "first")
SEARCHED = {count: Way("dependency", KL, "momentum", MU, count) for count in (1, 10)}
"""As the paper searches, and with its first candidate alone."""
TABLES = {
    "Noises and attentions": [*CROSS, *CONTROL.values(), T2V_ZERO],
    f"μ, with dependency noise at λ = {SWEPT_KL:g}": BY_MU,
    f"λ, with momentum at μ = {MU:g}": [*BY_KL, *SEARCHED.values()],
}
WAYS = list(dict.fromkeys(way for ways in TABLES.values() for way in ways))


def _noise(noise: str, attention: str = "momentum") -> Way:
    return Way(noise, dict(NOISES)[noise], attention, FIGURES_MU * (attention == "momentum"))


_OURS, _LOW, _HIGH = _noise("dependency"), BY_MU[0], BY_MU[-1]
_MOMENTUM, _HALF, _ZS2 = BY_MU[MUS.index(MU)], BY_MU[MUS.index(0.5)], BY_KL[KLS.index(KL)]
_CHANGES = (("obeys", 1), ("form", 1), ("grain", -1))
Asked = tuple[str, str, str, Way, Way | None, int]
ASKED: list[Asked] = [
    *(
        ("Fig. 9", f"Dependency noise keeps content better than {noise} of the same correlation", *rest)
        for noise in MATCHED
        for rest in ((f"{what} change", _OURS, CONTROL[noise], sign) for what, sign in _CHANGES)
    ),
    *(
        ("§3", f"Dependency noise is steadier than {noise} of the same correlation", "ssim", _OURS, CONTROL[noise], 1)
        for noise in MATCHED
    ),
    *(
        (f"Fig. {figure}", f"Content decays with {noise} noise", f"{measure} change", _noise(noise), None, -sign)
        for figure, noise in ((7, "progressive"), (8, "mixed"))
        for measure, sign in _CHANGES
    ),
    *(
        ("Fig. 9", f"Dependency noise keeps content better than {noise}", f"{what} change", _OURS, _noise(noise), sign)
        for noise in ("progressive", "mixed")
        for what, sign in _CHANGES
    ),
    *(
        ("§3", f"Dependency noise is steadier than {name}", "ssim", _OURS, _noise(noise), 1)
        for name, noise in (("i.i.d.", "iid"), ("mixed", "mixed"), ("progressive", "progressive"))
    ),
    ("Table 1", "ZS² is closer to the prompt than Text2Video-Zero", "look", _ZS2, T2V_ZERO, 1),
    ("Fig. 3", "ZS² is more continuous than Text2Video-Zero", "ssim", _ZS2, T2V_ZERO, 1),
    *(
        ("Fig. 10", f"Without the random search content is more monotonous: {than}", measure, SEARCHED[10], way, sign)
        for than, way in (("best of 10 and of 1", SEARCHED[1]), ("best of 10 and orthogonal", _ZS2))
        for measure, sign in (("travel", 1), ("kept", -1))
    ),
    ("§3.1", f"λ = {KLS[-1]:g} moves more than λ = {KL:g}", "travel", BY_KL[-1], BY_KL[1], 1),
    *(
        (where, f"{text}, λ = {SWEPT_KL:g}", measure, way, other, sign)
        for where, text, measure, way, other, sign in (
            ("§4", "First-frame attention is steadier than self-attention", "ssim", _HIGH, _LOW, 1),
            ("§4", "First-frame attention moves less than self-attention", "travel", _HIGH, _LOW, -1),
            ("§4.1", "Momentum is steadier than self-attention", "ssim", _MOMENTUM, _LOW, 1),
            ("§4.1", "Momentum is steadier than first-frame attention", "ssim", _MOMENTUM, _HIGH, 1),
            ("§4.1", "Momentum moves more than first-frame attention", "travel", _MOMENTUM, _HIGH, 1),
            ("", "μ = 0.5 is steadier than self-attention", "ssim", _HALF, _LOW, 0),
            ("", "Momentum keeps form better than self-attention", "form", _MOMENTUM, _LOW, 0),
        )
    ),
    *(
        ("§4.1", f"Momentum is steadier than {name}, i.i.d. noise", "ssim", _noise("iid"), _noise("iid", which), 1)
        for which, name in ATTENTIONS.items()
        if which != "momentum"
    ),
    (
        "",
        "Momentum keeps form better than self-attention, i.i.d. noise",
        "form",
        _noise("iid"),
        _noise("iid", "self"),
        0,
    ),
]
"""Where the paper says it, what it says, the measure of which way, less that of which other where there is one, and its
sign. Sign 0: none of its claims, but something to know beside them. Of noises: with momentum attention, as the paper
draws its figures."""

_MAIN = [_OURS, *CONTROL.values()]
_FIRST = [*(_noise(noise) for noise, _ in NOISES[:-1]), _ZS2, T2V_ZERO, _noise("iid", "self"), BY_KL[-1]]
_SECOND = [_LOW, _MOMENTUM, _HIGH, *SEARCHED.values(), _noise("iid", "first"), _noise("iid", "first_and_previous")]
PARTS = (_MAIN, _FIRST, _SECOND, [way for way in WAYS if way not in _MAIN + _FIRST + _SECOND])
"""All ways in the order in which they are drawn, each part for all scenes: those that most claims ask for first."""
