"""Synthetic scenes: little landscapes of stuff with textured things in them, and their exact panoptic truth.

random state -> sky, mountains, ground -> things, far to near, each with its shadow -> grain -> image, PanopticMap

Everything is drawn here, so that tests, tutorials and a first training run need no data set. A pixel belongs to what covers its
centre; edges are antialiased over one pixel. Coordinates are pixels, y downwards; light comes from the upper left.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
from PIL import Image

from thingstuff.errors import ConfigError
from thingstuff.structures.categories import Categories, Category
from thingstuff.structures.panoptic import PanopticMap

THINGS = ("circle", "square", "triangle", "star", "ring")
STUFF = ("sky", "mountain", "water", "meadow", "sand")
CATEGORIES = Categories(tuple(Category(number, name, name in THINGS) for number, name in enumerate((*THINGS, *STUFF), start=1)))

MIN_SIDE = 32  # pixels: a smaller picture has no room for a scene
MAX_SIDE = 4096  # pixels: a larger one takes many minutes
MIN_VISIBLE = 16  # pixels of each thing
MIN_SHARE = 0.35  # of a thing that stays uncovered by the things before it
PROPOSED = (5, 12)  # things that are tried, from and to; those without room are left out

Map = Float32[np.ndarray, "height width"]
Picture = Float32[np.ndarray, "height width 3"]  # RGB, 0..1
Window = tuple[slice, slice]  # rows, columns


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn image and what is in it: no void, no crowd, each thing with at least MIN_VISIBLE pixels."""

    image: UInt8[np.ndarray, "height width 3"]
    panoptic: PanopticMap


@dataclass(frozen=True)
class Thing:
    """One thing before it is drawn, in pixels."""

    kind: str  # one of THINGS
    centre: tuple[float, float]  # x, y
    radius: float
    turn: float  # radians
    on_ground: bool  # it throws a shadow; False: it floats in the sky


def scenes(count: int, size: tuple[int, int] = (240, 320), seed: int = 0, first: int = 0) -> Iterator[Scene]:
    """Scenes `first`, `first + 1`, ... of a seed; each follows from (seed, its number, size) alone.

    Raises:
        ConfigError: a side of `size` (height, width) is below MIN_SIDE or above MAX_SIDE, or a seed below 0.
    """
    if min(size) < MIN_SIDE:
        raise ConfigError(f"a scene needs {MIN_SIDE} pixels a side, got {size[1]} x {size[0]} (width x height)")
    if max(size) > MAX_SIDE:
        raise ConfigError(f"a scene has at most {MAX_SIDE} pixels a side, got {size[1]} x {size[0]} (width x height)")
    if seed < 0:
        raise ConfigError(f"a seed is a whole number from 0, got {seed}")
    return (draw_scene(size, np.random.default_rng((seed, number))) for number in range(first, first + count))


def draw_scene(size: tuple[int, int], random: np.random.Generator) -> Scene:
    """One scene of (height, width) pixels."""
    picture, stuff, horizon = _landscape(size, random)
    drawn: list[tuple[int, np.ndarray]] = []  # class and visible pixels of each thing, far to near
    areas: list[int] = []  # what each would show alone
    for thing in _things(size, horizon, random):
        window = _window(thing, size)
        distance = _distance(thing, window)
        mask = np.zeros(size, np.bool_)
        mask[window] = distance < 0
        area = int(np.count_nonzero(mask))
        left = [(class_, seen & ~mask) for class_, seen in drawn]
        if area < max(MIN_VISIBLE, 0.5 * _whole_area(thing)):  # too small, or half out of the picture
            continue
        if any(seen.sum() < max(MIN_VISIBLE, MIN_SHARE * whole) for (_, seen), whole in zip(left, areas, strict=True)):
            continue
        picture[window] = _with_thing(picture[window], thing, window, distance, horizon, random)
        drawn = [*left, (THINGS.index(thing.kind), mask)]
        areas.append(area)
    grain = random.normal(0, 0.010, (*size, 1)) + random.normal(0, 0.006, (*size, 3))
    image = np.clip((picture + grain) * 255 + 0.5, 0, 255).astype(np.uint8)
    return Scene(image, _truth(stuff, drawn))


def _truth(stuff: Int64[np.ndarray, "height width"], things: list[tuple[int, np.ndarray]]) -> PanopticMap:
    """Things in the order they were drawn, then the stuff that is still to be seen, one segment a class; ids from 1."""
    owners = np.zeros(stuff.shape, np.int32)  # 0: no thing
    for number, (_, mask) in enumerate(things, start=1):
        owners[mask] = number
    classes = [class_ for class_, _ in things]
    for class_ in np.unique(stuff[owners == 0]).tolist():
        classes.append(len(THINGS) + class_)
        owners[(owners == 0) & (stuff == class_)] = len(classes)
    ids = np.arange(1, len(classes) + 1)
    return PanopticMap(owners, ids, np.array(classes, np.int64), np.zeros(len(classes), np.bool_), CATEGORIES)


# Textures -------------------------------------------------------------------------------------------------------------


def _noise(random: np.random.Generator, size: tuple[int, int], cells: tuple[float, float], octaves: int = 4) -> Map:
    """Fractal value noise, about -1..1: octave k has 2^k times as many `cells` down and across and half the height."""
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        grid = [min(max(2, round(side * 2**octave)), most + 2) for side, most in zip(cells, size, strict=True)]
        values = Image.fromarray(random.uniform(-1, 1, grid).astype(np.float32))
        total += np.asarray(values.resize((size[1], size[0]), Image.Resampling.BICUBIC)) / 2**octave
    return total


def _curve(random: np.random.Generator, width: int, bumps: float, octaves: int = 4) -> Float32[np.ndarray, " width"]:
    """A wavy line, about -1..1 at each column."""
    return _noise(random, (2, width), (2.0, bumps), octaves)[0]


def _on_plane(tile: Float32[np.ndarray, "rows columns"], size: tuple[int, int], horizon: float, cells: float) -> Map:
    """A texture seen on the ground in perspective, `cells` of the tile across the lower edge; it fades towards the horizon."""
    height, width = size
    depth = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - horizon) / max(height - horizon, 1.0)  # 0 far .. 1 near
    near = np.maximum(depth, 0.04)
    across = cells * ((np.arange(width, dtype=np.float32)[None] + 0.5) / width - 0.5) / near
    along = cells * (height - horizon) / width / near + np.zeros_like(across)
    (top, bottom, down), (left, right, over) = _between(along, tile.shape[0]), _between(across, tile.shape[1])
    upper = tile[top, left] * (1 - over) + tile[top, right] * over
    lower = tile[bottom, left] * (1 - over) + tile[bottom, right] * over
    return np.where(depth > 0, (upper * (1 - down) + lower * down) * np.minimum(1, near * 2), 0).astype(np.float32)


def _between(values: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two cells that each position lies between, on a line of `side` cells walked to and fro, and how far it is."""
    first = np.floor(values).astype(np.int64)
    before, after = (np.minimum(cell % (2 * side), 2 * side - 1 - cell % (2 * side)) for cell in (first, first + 1))
    return before, after, (values - first).astype(np.float32)


def _mixed(picture: Picture, colour: np.ndarray | tuple[float, float, float], share: np.ndarray) -> Picture:
    """The picture blended with a colour, or with another picture, by a share from 0 to 1 of each pixel."""
    share = np.clip(share, 0, 1)[..., None]
    return (picture * (1 - share) + np.asarray(colour, np.float32) * share).astype(np.float32)


# Stuff ----------------------------------------------------------------------------------------------------------------

SKIES = (  # RGB at the top and at the horizon
    ((0.24, 0.47, 0.80), (0.74, 0.86, 0.95)),
    ((0.33, 0.56, 0.84), (0.90, 0.92, 0.90)),
    ((0.30, 0.36, 0.58), (0.98, 0.76, 0.58)),
    ((0.45, 0.53, 0.62), (0.80, 0.83, 0.85)),
)
GROUNDS = (  # behind, and in front of a shore line or around a lake; None: the same all over
    ("meadow", None),
    ("meadow", "water"),
    ("water", "sand"),
    ("water", "meadow"),
    ("sand", None),
    ("sand", "meadow"),
)


def _landscape(size: tuple[int, int], random: np.random.Generator) -> tuple[Picture, Int64[np.ndarray, "height width"], float]:
    """A picture without things, the index into STUFF of each pixel, and the horizon's y."""
    height, width = size
    horizon = height * random.uniform(0.32, 0.55)
    top, bottom = SKIES[random.integers(len(SKIES))]
    sky = _sky(size, horizon, top, bottom, random)
    picture, stuff = sky, np.full(size, STUFF.index("sky"))
    rows = np.arange(height, dtype=np.float32)[:, None] + 0.5

    if random.random() < 0.75:
        for far in (True, False)[random.integers(2) :]:
            rise = (0.75 if far else 0.45) * horizon * random.uniform(0.7, 1)
            ridge = horizon - rise * (0.55 + 0.45 * _curve(random, width, random.uniform(2, 4), 6))
            picture = _mixed(picture, _mountain(size, ridge, rise, far, bottom, random), rows - ridge[None] + 0.5)
            stuff[rows > ridge[None]] = STUFF.index("mountain")

    behind, front = GROUNDS[random.integers(len(GROUNDS))]
    roll = 0 if behind == "water" else 0.03 * height
    edge = horizon + roll * _curve(random, width, 2.0, 3)
    picture = _mixed(picture, _ground(behind, size, horizon, sky, random), rows - edge[None] + 0.5)
    stuff[rows > edge[None]] = STUFF.index(behind)
    if front is not None:
        inside = _lake(size, horizon, random) if front == "water" else _shore(size, horizon, random)
        if behind == "water":  # wet sand and foam along the shore
            picture = _mixed(picture, (0.93, 0.95, 0.95), 0.5 - np.abs(inside + 0.01 * height) / (0.012 * height + 1))
        picture = _mixed(picture, _ground(front, size, horizon, sky, random), inside + 0.5)
        stuff[inside > 0] = STUFF.index(front)
    return picture, stuff, horizon


def _sky(size: tuple[int, int], horizon: float, top: tuple, bottom: tuple, random: np.random.Generator) -> Picture:
    height, width = size
    down = np.clip(np.arange(height, dtype=np.float32)[:, None] / horizon, 0, 1) ** 1.3 + np.zeros((1, width), np.float32)
    sky = _mixed(np.full((*size, 3), top, np.float32), bottom, down)
    clouds = _noise(random, size, (3.0, 2.5 * width / height), 6) + random.uniform(-0.5, 0.3)
    return _mixed(sky, (0.97, 0.97, 0.98), clouds * 1.1 * (1 - 0.6 * down))


def _mountain(
    size: tuple[int, int], ridge: np.ndarray, rise: float, far: bool, haze: tuple, random: np.random.Generator
) -> Picture:
    height, width = size
    rock = _noise(random, size, (5.0, 5 * width / height), 6)
    down, across = np.gradient(rock)
    light = np.clip(0.5 - (across + down) * min(size) / 12, 0, 1)
    base = np.array((0.34, 0.36, 0.36) if random.random() < 0.5 else (0.38, 0.34, 0.29), np.float32)
    picture = (base * (0.55 + 0.75 * light[..., None])).astype(np.float32)
    depth = np.arange(height, dtype=np.float32)[:, None] - ridge[None]  # below the ridge
    altitude = 1 - (depth + ridge[None] - ridge.min()) / max(rise, 1)
    if far:
        picture = _mixed(picture, (0.96, 0.97, 1.0), (altitude - 0.62 + 0.12 * rock) * 14 * (0.4 + light))
    else:
        picture = _mixed(picture, (0.24, 0.36, 0.20), 0.75 - altitude + 0.3 * rock)
    return _mixed(picture, haze, (0.45 if far else 0.2) + 0.25 * (1 - altitude))


def _shore(size: tuple[int, int], horizon: float, random: np.random.Generator) -> Map:
    """Pixels below a wavy shore line, negative above it."""
    height, width = size
    line = horizon + (height - horizon) * (random.uniform(0.3, 0.6) + 0.16 * _curve(random, width, 1.5, 4))
    line = line + (height - horizon) * 0.2 * random.uniform(-1, 1) * np.linspace(-1, 1, width)
    line = np.maximum(line, horizon + 0.08 * (height - horizon))
    return (np.arange(height, dtype=np.float32)[:, None] + 0.5 - line[None]).astype(np.float32)


def _lake(size: tuple[int, int], horizon: float, random: np.random.Generator) -> Map:
    """About how many pixels a pixel lies inside the shore of a lake, negative outside."""
    height, width = size
    radius_x, radius_y = random.uniform(0.25, 0.45) * width, random.uniform(0.13, 0.22) * (height - horizon)
    x0, y0 = random.uniform(0.25, 0.75) * width, horizon + random.uniform(0.3, 0.55) * (height - horizon)
    y, x = np.ogrid[:height, :width]
    round_ = np.hypot((x + 0.5 - x0) / radius_x, (y + 0.5 - y0) / radius_y)
    return ((1 + 0.25 * _noise(random, size, (4.0, 3.0), 3) - round_) * radius_y).astype(np.float32)


def _ground(kind: str, size: tuple[int, int], horizon: float, sky: Picture, random: np.random.Generator) -> Picture:
    height, width = size
    near = np.clip((np.arange(height, dtype=np.float32)[:, None] - horizon) / (height - horizon), 0, 1)
    broad = _noise(random, size, (5.0, 4.0), 3)
    if kind == "water":
        waves = _on_plane(_noise(random, (128, 128), (48.0, 10.0), 3), size, horizon, random.uniform(20, 40))
        mirror = sky[np.clip((2 * horizon - np.arange(height)).astype(int), 0, max(int(horizon) - 1, 0))]
        deep = np.array((0.10, 0.30, 0.42) if random.random() < 0.6 else (0.12, 0.36, 0.38), np.float32)
        picture = _mixed(mirror, deep, 0.35 + 0.4 * near + 0.22 * waves + 0.05 * broad)
        return _mixed(picture, (1.0, 1.0, 0.98), (waves - 0.75) * 1.5)
    if kind == "meadow":
        tufts = _on_plane(_noise(random, (128, 128), (64.0, 64.0), 2), size, horizon, random.uniform(70, 110))
        blades = _noise(random, size, (height / 5, width / 2), 1)
        dry = np.array((0.66, 0.62, 0.30), np.float32)
        fresh = np.array((0.26, 0.46, 0.16) if random.random() < 0.6 else (0.33, 0.50, 0.20), np.float32)
        picture = _mixed(np.broadcast_to(fresh, (*size, 3)), dry, 0.25 + 0.3 * broad - 0.15 * near)
        return (picture * (0.97 + 0.16 * tufts + 0.12 * near * blades - 0.12 * near)[..., None]).astype(np.float32)
    ripples = _on_plane(_noise(random, (128, 128), (64.0, 16.0), 3), size, horizon, random.uniform(30, 60))
    base = np.array((0.86, 0.76, 0.56) if random.random() < 0.6 else (0.82, 0.66, 0.46), np.float32)
    return (base * (0.95 + 0.10 * broad + 0.09 * ripples - 0.05 * near)[..., None]).astype(np.float32)


# Things ---------------------------------------------------------------------------------------------------------------


def _things(size: tuple[int, int], horizon: float, random: np.random.Generator) -> list[Thing]:
    """What is tried, far to near; now and then close to another, so that they cover each other."""
    height, width = size
    unit = min(size)
    things: list[Thing] = []
    for _ in range(random.integers(PROPOSED[0], PROPOSED[1] + 1)):
        kind = str(random.choice(THINGS))
        floats = kind in ("circle", "star", "ring") and random.random() < 0.3
        near = 0.0 if floats else random.uniform(0.02, 0.9)  # of the way from the horizon to the lower edge
        radius = max(3.0, unit * (random.uniform(0.05, 0.11) if floats else random.uniform(0.7, 1.2) * (0.045 + 0.16 * near)))
        foot = random.uniform(0.15, 0.75) * horizon + radius if floats else horizon + near * (height - horizon)
        x = random.uniform(0.04, 0.96) * width
        if things and not floats and random.random() < 0.45:
            other = things[random.integers(len(things))]
            x = other.centre[0] + random.uniform(0.6, 1.3) * random.choice((-1, 1)) * (other.radius + radius) / 2
        turn = {"square": random.uniform(-0.25, 0.25), "triangle": random.uniform(-0.1, 0.1)}.get(kind, random.uniform(0, 6.3))
        if kind == "star":
            turn = random.uniform(-0.2, 0.2)
        things.append(Thing(kind, (x, foot - _rest(kind) * radius), radius, turn, not floats))
    return sorted(things, key=lambda thing: (thing.on_ground, thing.centre[1] + _rest(thing.kind) * thing.radius))


def _rest(kind: str) -> float:
    """How far below its centre a thing stands, in radii."""
    return {"square": 0.8, "triangle": 0.55, "star": 0.78}.get(kind, 1.0)


def _outline(kind: str) -> Float[np.ndarray, "corners 2"]:
    """Corners x y of a thing of radius 1 about 0, clockwise on the screen."""
    if kind == "square":
        return np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
    if kind == "triangle":
        return np.array([(0.0, -1.05), (0.98, 0.55), (-0.98, 0.55)])
    angles = -np.pi / 2 + np.pi / 5 * np.arange(10)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]


def _whole_area(thing: Thing) -> float:
    """Pixels of the thing if nothing cut it off."""
    if thing.kind == "circle":
        return float(np.pi * thing.radius**2)
    if thing.kind == "ring":
        return float(4 * np.pi * RING_MIDDLE * RING_HALF * thing.radius**2)
    x, y = _outline(thing.kind).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 * thing.radius**2)


RING_MIDDLE, RING_HALF = 0.72, 0.28  # of a ring of radius 1: where the middle of its tube runs, and half the tube


def _window(thing: Thing, size: tuple[int, int]) -> Window:
    """The rows and columns that the thing and its shadow may touch."""
    (x, y), reach = thing.centre, 1.7 * thing.radius + 2
    (top, bottom), (left, right) = (
        (max(0, int(at - reach)), int(min(side, at + reach))) for at, side in ((y, size[0]), (x, size[1]))
    )
    return slice(top, max(bottom, top)), slice(left, max(right, left))


def _centres(window: Window) -> tuple[np.ndarray, np.ndarray]:
    """x, as a row, and y, as a column, of the pixels' centres."""
    rows, columns = window
    return np.arange(columns.start, columns.stop)[None] + 0.5, np.arange(rows.start, rows.stop)[:, None] + 0.5


def _own_coordinates(thing: Thing, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """x and y of each pixel's centre in the thing's own frame: centred, turned back, in radii."""
    x, y = _centres(window)
    x, y = (x - thing.centre[0]) / thing.radius, (y - thing.centre[1]) / thing.radius
    cos, sin = np.cos(thing.turn), np.sin(thing.turn)
    return x * cos + y * sin, y * cos - x * sin


def _distance(thing: Thing, window: Window) -> Map:
    """Signed distance of each pixel's centre to the outline, in pixels, negative inside."""
    x, y = _own_coordinates(thing, window)
    if thing.kind == "circle":
        distance = np.hypot(x, y) - 1
    elif thing.kind == "ring":
        distance = np.abs(np.hypot(x, y) - RING_MIDDLE) - RING_HALF
    else:
        corners = _outline(thing.kind)
        distance, inside = np.full(x.shape, np.inf), np.zeros(x.shape, np.bool_)
        for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            along = np.clip(((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / ((x2 - x1) ** 2 + (y2 - y1) ** 2), 0, 1)
            distance = np.minimum(distance, np.hypot(x - x1 - along * (x2 - x1), y - y1 - along * (y2 - y1)))
            if y1 != y2:  # even-odd rule
                inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
        distance = np.where(inside, -distance, distance)
    return (distance * thing.radius).astype(np.float32)


def _with_thing(
    picture: Picture, thing: Thing, window: Window, distance: Map, horizon: float, random: np.random.Generator
) -> Picture:
    """A window of the picture with the thing drawn on it, and its shadow below it."""
    if thing.on_ground:
        x, y = _centres(window)
        foot = thing.centre[1] + _rest(thing.kind) * thing.radius
        wide, flat = 1.15 * thing.radius, 0.26 * thing.radius
        round_ = np.hypot((x - thing.centre[0] - 0.45 * thing.radius) / wide, (y - foot) / flat)
        picture = _mixed(picture, (0.08, 0.10, 0.12), 0.5 * np.clip((1.15 - round_) / 0.6, 0, 1) * (y > horizon))
    shade, gloss = _light(thing, distance)
    surface = np.clip(_texture(thing, window, random) * shade[..., None] + gloss[..., None], 0, 1).astype(np.float32)
    return _mixed(picture, surface, 0.5 - distance)


def _texture(thing: Thing, window: Window, random: np.random.Generator) -> Picture:
    """Colours of the surface: plain, striped, dotted, checked or marbled."""
    x, y = _own_coordinates(thing, window)
    first = _colour(random.uniform(0, 1), random.uniform(0.5, 0.85), random.uniform(0.62, 0.95))
    light = random.random() < 0.5
    second = _colour(random.uniform(0, 1), 0.15 if light else 0.7, 0.95 if light else 0.42)
    pattern = ("plain", "stripes", "dots", "checks", "marble")[random.choice(5, p=(0.2, 0.25, 0.2, 0.15, 0.2))]
    many = random.uniform(2.2, 3.6)  # stripes of each colour on a diameter
    turn = random.uniform(0, np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    steep = thing.radius / (1.2 * many)  # edges of a pattern are about a pixel wide
    if pattern == "stripes":
        share = np.sin(along * many * np.pi) * steep / np.pi + 0.5
    elif pattern == "checks":
        share = np.sin(x * many * np.pi) * np.sin(y * many * np.pi) * steep / np.pi + 0.5
    elif pattern == "dots":
        share = (0.28 - np.hypot(*((values * many * 0.8) % 1 - 0.5 for values in (x, y)))) * steep + 0.5
    elif pattern == "marble":
        size = (int(x.shape[0]), int(x.shape[1]))
        share = 0.5 + 0.5 * np.sin(4 * along + 3 * _noise(random, size, (3.5, 3.5), 4))
    else:
        share = np.zeros(x.shape)
    return _mixed(np.broadcast_to(first, (*x.shape, 3)), second, share)


def _colour(hue: float, saturation: float, value: float) -> Float32[np.ndarray, "3"]:
    """RGB of a colour given as HSV, all from 0 to 1."""
    sector = (hue * 6 + np.array((5.0, 3.0, 1.0))) % 6
    return (value - value * saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1)).astype(np.float32)


def _light(thing: Thing, distance: Map) -> tuple[Map, Map]:
    """How bright the surface is and how much it shines: round things are balls and tubes, the others have rounded edges."""
    depth = {"circle": 1.0, "ring": RING_HALF}.get(thing.kind, 0.3) * thing.radius  # from the outline to the top of the surface
    slope = 1 - np.clip(-distance / depth, 0, 1)
    down, across = np.gradient(distance)  # away from the middle
    steep = np.hypot(down, across)
    steep = np.where(steep > 1e-6, steep, 1)
    rise = np.sqrt(np.maximum(1 - slope**2, 0))
    facing = (-0.45 * across / steep - 0.6 * down / steep) * slope + 0.66 * rise  # of the normal to the light
    shade = 0.42 + 0.72 * np.maximum(facing, 0)
    gloss = 0.5 * np.maximum(facing, 0) ** 24 if thing.kind in ("circle", "ring") else np.zeros_like(facing)
    return shade.astype(np.float32), gloss.astype(np.float32)
