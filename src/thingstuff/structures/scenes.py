"""Categories of two large scene data sets, which published networks know: ADE20K and Mapillary Vistas."""

from thingstuff.structures.categories import Categories, Category

# ADE20K (Zhou et al., 2017, arXiv:1608.05442): the 150 categories of its scene parsing challenge, in its order. Names, with the
# space after "window", and ids, which count from 0, are those of the panoptic files that Mask2Former's authors make of it.
_ADE20K = (
    *("wall", "building", "sky", "floor", "tree", "ceiling", "road, route", "bed", "window ", "grass", "cabinet"),
    *("sidewalk, pavement", "person", "earth, ground", "door", "table", "mountain, mount", "plant", "curtain", "chair", "car"),
    *("water", "painting, picture", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence"),
    *("desk", "rock, stone", "wardrobe, closet, press", "lamp", "tub", "rail", "cushion", "base, pedestal, stand", "box"),
    *("column, pillar", "signboard, sign", "chest of drawers, chest, bureau, dresser", "counter", "sand", "sink", "skyscraper"),
    *("fireplace", "refrigerator, icebox", "grandstand, covered stand", "path", "stairs", "runway"),
    *("case, display case, showcase, vitrine", "pool table, billiard table, snooker table", "pillow", "screen door, screen"),
    *("stairway, staircase", "river", "bridge, span", "bookcase", "blind, screen", "coffee table"),
    *("toilet, can, commode, crapper, pot, potty, stool, throne", "flower", "book", "hill", "bench", "countertop", "stove"),
    *("palm, palm tree", "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine"),
    *("hovel, hut, hutch, shack, shanty", "bus", "towel", "light", "truck", "tower", "chandelier"),
    *("awning, sunshade, sunblind", "street lamp", "booth", "tv", "plane", "dirt track", "clothes", "pole"),
    *("land, ground, soil", "bannister, banister, balustrade, balusters, handrail"),
    *("escalator, moving staircase, moving stairway", "ottoman, pouf, pouffe, puff, hassock", "bottle"),
    *("buffet, counter, sideboard", "poster, posting, placard, notice, bill, card", "stage", "van", "ship", "fountain"),
    *("conveyer belt, conveyor belt, conveyer, conveyor, transporter", "canopy", "washer, automatic washer, washing machine"),
    *("plaything, toy", "pool", "stool", "barrel, cask", "basket, handbasket", "falls", "tent", "bag", "minibike, motorbike"),
    *("cradle", "oven", "ball", "food, solid food", "step, stair", "tank, storage tank", "trade name", "microwave", "pot"),
    *("animal", "bicycle", "lake", "dishwasher", "screen", "blanket, cover", "sculpture", "hood, exhaust hood", "sconce"),
    *("vase", "traffic light", "tray", "trash can", "fan", "pier", "crt screen", "plate", "monitor", "bulletin board"),
    *("shower", "radiator", "glass, drinking glass", "clock", "flag"),
)
_ADE20K_STUFF = {
    *(0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79, 84),
    *(91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145),
}

ADE20K = Categories(tuple(Category(id_, name, id_ not in _ADE20K_STUFF) for id_, name in enumerate(_ADE20K)))
"""The 150 categories of ADE20K: 100 things and 50 kinds of stuff, mixed; class 0 is "wall", class 149 is "flag"."""

ADE20K_THINGS = Categories(tuple(category for category in ADE20K if category.is_thing))
"""The 100 things of ADE20K, which its instance networks know: class 0 is "bed" (category id 7), class 99 is "flag" (149)."""

# Mapillary Vistas 1.2 (Neuhold et al., 2017, ICCV): the 65 categories of its panoptic files, all but "Unlabeled", ids from 1.
_MAPILLARY_VISTAS = (
    ("animal", True, ("Bird", "Ground Animal")),
    ("construction", False, ("Curb", "Fence", "Guard Rail", "Barrier", "Wall", "Bike Lane")),
    ("construction", True, ("Crosswalk - Plain",)),
    ("construction", False, ("Curb Cut", "Parking", "Pedestrian Area", "Rail Track", "Road", "Service Lane", "Sidewalk")),
    ("construction", False, ("Bridge", "Building", "Tunnel")),
    ("human", True, ("Person", "Bicyclist", "Motorcyclist", "Other Rider")),
    ("marking", True, ("Lane Marking - Crosswalk",)),
    ("marking", False, ("Lane Marking - General",)),
    ("nature", False, ("Mountain", "Sand", "Sky", "Snow", "Terrain", "Vegetation", "Water")),
    ("object", True, ("Banner", "Bench", "Bike Rack", "Billboard", "Catch Basin", "CCTV Camera", "Fire Hydrant")),
    ("object", True, ("Junction Box", "Mailbox", "Manhole", "Phone Booth")),
    ("object", False, ("Pothole",)),
    ("object", True, ("Street Light", "Pole", "Traffic Sign Frame", "Utility Pole", "Traffic Light")),
    ("object", True, ("Traffic Sign (Back)", "Traffic Sign (Front)", "Trash Can")),
    ("object", True, ("Bicycle", "Boat", "Bus", "Car", "Caravan", "Motorcycle")),
    ("object", False, ("On Rails",)),
    ("object", True, ("Other Vehicle", "Trailer", "Truck", "Wheeled Slow")),
    ("void", False, ("Car Mount", "Ego Vehicle")),
)

MAPILLARY_VISTAS = Categories(
    tuple(
        Category(id_, name, is_thing, group)
        for id_, (name, is_thing, group) in enumerate(
            ((name, is_thing, group) for group, is_thing, names in _MAPILLARY_VISTAS for name in names), start=1
        )
    )
)
"""The 65 categories of Mapillary Vistas: 37 things and 28 kinds of stuff, mixed; class 0 is "Bird" (category id 1)."""
