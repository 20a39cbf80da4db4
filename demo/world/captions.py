"""Captions of scenes: several phrasings, with synonyms, and some that leave attributes out."""

from __future__ import annotations

import random
import re

from .scenes import Scene, Surface, Thing

_SINGLE = (
    "a {size} {colour} {thing} {where} on {background}",
    "{size} {colour} {thing} {where}, {background}",
    "a {colour} {thing}, {size}, {where}, on {background}",
    "on {background}, {where}, a {size} {colour} {thing}",
    "a picture of a {size} {colour} {thing} {where} on {background}",
)
_SINGLE_PARTIAL = (
    "a {colour} {thing} on {background}",
    "{colour} {thing}, {background}",
    "a {size} {colour} {thing} on {background}",
    "a {colour} {thing} {where} on {background}",
    "a {thing} on {background}",
    "a {size} {colour} {thing} {where}",
    "a {colour} {thing}",
    "a {size} {thing} {where}",
)
_PAIR = (
    "a {colour} {thing} {relation} a {colour2} {thing2} on {background}",
    "a {colour} {thing} {relation} a {colour2} {thing2}, {background}",
    "on {background}, a {colour} {thing} {relation} a {colour2} {thing2}",
    "a picture of a {colour} {thing} {relation} a {colour2} {thing2} on {background}",
)
_PAIR_PARTIAL = (
    "a {colour} {thing} {relation} a {colour2} {thing2}",
    "a {thing} {relation} a {thing2} on {background}",
    "a {colour} {thing} and a {colour2} {thing2} on {background}",
)
_WORDS = {
    "small": ("small", "small", "little", "tiny"),
    "large": ("large", "large", "big", "huge"),
    "circle": ("circle", "ball"),
    "cup": ("cup", "mug"),
    "rabbit": ("rabbit", "bunny"),
    "plane": ("plane", "airplane"),
    "moon": ("moon", "crescent moon"),
    "bolt": ("bolt", "lightning bolt"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def caption(scene: Scene, rng: random.Random, partial: float = 0.0) -> str:
    """One of several phrasings of ``scene``; a share ``partial`` of them leaves attributes out."""
    return describe(scene, rng, partial)[0]


def describe(scene: Scene, rng: random.Random, partial: float = 0.0) -> tuple[str, dict[str, str]]:
    """A caption, and what it says: the names of :func:`attributes` with their values."""
    some = rng.random() < partial
    if scene.relation:
        template = rng.choice(_PAIR_PARTIAL if some else _PAIR)
    else:
        template = rng.choice(_SINGLE_PARTIAL if some else _SINGLE)
    words = {"background": _background(scene.background, rng), "relation": _word(scene.relation, rng)}
    for thing, suffix in zip(scene.things, ("", "2"), strict=False):
        words |= {
            f"colour{suffix}": _fill(thing.surface),
            f"thing{suffix}": _word(thing.kind, rng),
            f"size{suffix}": _word(thing.size, rng),
            f"where{suffix}": _where(thing, rng),
        }
    said = set(re.findall(r"{(\w+)}", template))
    text = re.sub(r"\ba (?=[aeiou])", "an ", template.format(**words))
    return text, {name: value for name, (slot, value) in attributes(scene).items() if slot in said}


def attributes(scene: Scene) -> dict[str, tuple[str, str]]:
    """All that can be said of ``scene``: the template's slot that says it, and its value."""
    found = {"relation": ("relation", scene.relation)} if scene.relation else {}
    for thing, suffix in zip(scene.things, ("", "2"), strict=False):
        found |= {
            f"thing{suffix}": (f"thing{suffix}", thing.kind),
            f"colour{suffix}": (f"colour{suffix}", thing.surface.colour),
            f"second{suffix}": (f"colour{suffix}", thing.surface.second),
            f"size{suffix}": (f"size{suffix}", thing.size),
            f"row{suffix}": (f"where{suffix}", thing.row),
            f"column{suffix}": (f"where{suffix}", thing.column),
        }
    surface = scene.background
    behind = {"background": surface.colour, "pattern": surface.pattern, "other": surface.second}
    return found | {name: ("background", value) for name, value in behind.items()}


def _word(name: str, rng: random.Random) -> str:
    return rng.choice(_WORDS.get(name, (name,)))


def _where(thing: Thing, rng: random.Random) -> str:
    if thing.position == "centre":
        return rng.choice(("in the centre", "in the middle", "at the center"))
    return rng.choice(("at the {}", "in the {}")).format(thing.position)


def _fill(surface: Surface) -> str:
    return f"{surface.colour} and {surface.second} striped" if surface.second else surface.colour


def _background(surface: Surface, rng: random.Random) -> str:
    phrases = {
        "plain": ("{colour}", "a {colour} background"),
        "stripes": ("{colour} and {second} stripes", "a {colour} and {second} striped background"),
        "dots": ("{colour} with {second} dots", "a {colour} background with {second} dots"),
        "gradient": ("a gradient from {colour} to {second}", "a {colour} to {second} gradient"),
    }
    return rng.choice(phrases[surface.pattern]).format(colour=surface.colour, second=surface.second)
