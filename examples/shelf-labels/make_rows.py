"""Writes the rows of this example: supplier lines with the shelf label that each should become.

Standard library alone; the same files every time. The parts (articles, words for colours and materials, ways to write a size, brands, the shapes of
a line) were written by hand for this repository; the script draws from them. No supplier's data was used.

    python3 make_rows.py
"""

import csv
import random

# Article: words that suppliers use for it; materials; sizes as (number, unit).
ARTICLES = {
    "Mug": (["mug", "coffee mug", "MUG", "tea mug", "Becher mug"], ["ceramic", "glass", "stainless steel", "bamboo"], [("250", "ml"), ("300", "ml"), ("350", "ml"), ("0.4", "l")]),
    "Kettle": (["kettle", "water kettle", "electric kettle", "KETTLE el."], ["stainless steel", "glass", "plastic"], [("1", "l"), ("1.5", "l"), ("1.7", "l")]),
    "Frying pan": (["frying pan", "fry pan", "frypan", "skillet"], ["cast iron", "aluminium", "stainless steel"], [("20", "cm"), ("24", "cm"), ("28", "cm")]),
    "Cutting board": (["cutting board", "chopping board", "chop. board"], ["bamboo", "beech wood", "plastic"], [("30", "cm"), ("35", "cm"), ("40", "cm")]),
    "Salad bowl": (["salad bowl", "bowl salad", "serving bowl salad"], ["glass", "bamboo", "ceramic", "plastic"], [("22", "cm"), ("26", "cm"), ("30", "cm")]),
    "Bath towel": (["bath towel", "towel bath", "bathtowel"], ["cotton", "linen"], [("140", "cm"), ("150", "cm"), ("160", "cm")]),
    "Cushion": (["cushion", "throw cushion", "sofa cushion", "cushion w. filling"], ["cotton", "linen", "wool", "polyester"], [("40", "cm"), ("45", "cm"), ("50", "cm")]),
    "Blanket": (["blanket", "throw blanket", "plaid blanket"], ["wool", "cotton", "polyester"], [("180", "cm"), ("200", "cm"), ("220", "cm")]),
    "Storage box": (["storage box", "box storage", "stor. box with lid"], ["plastic", "beech wood", "bamboo"], [("5", "l"), ("12", "l"), ("20", "l"), ("45", "l")]),
    "Watering can": (["watering can", "water can garden", "wat. can"], ["plastic", "steel", "copper"], [("1.5", "l"), ("5", "l"), ("10", "l")]),
    "Plant pot": (["plant pot", "flower pot", "planter pot"], ["ceramic", "terracotta", "plastic"], [("12", "cm"), ("16", "cm"), ("20", "cm")]),
    "Desk lamp": (["desk lamp", "lamp desk", "table lamp desk"], ["steel", "aluminium", "plastic"], [("38", "cm"), ("45", "cm"), ("60", "cm")]),
    "Wall clock": (["wall clock", "clock wall", "wallclock"], ["plastic", "beech wood", "aluminium"], [("25", "cm"), ("30", "cm"), ("35", "cm")]),
    "Water bottle": (["water bottle", "drinking bottle", "bottle sport"], ["stainless steel", "glass", "plastic", "aluminium"], [("500", "ml"), ("600", "ml"), ("750", "ml"), ("1", "l")]),
    "Lunch box": (["lunch box", "lunchbox", "bento lunch box"], ["stainless steel", "plastic", "bamboo"], [("800", "ml"), ("1", "l"), ("1.2", "l")]),
    "Shower curtain": (["shower curtain", "curtain shower", "shwr curtain"], ["polyester", "cotton"], [("180", "cm"), ("200", "cm")]),
    "Tablecloth": (["tablecloth", "table cloth", "cloth for table"], ["linen", "cotton", "polyester"], [("140", "cm"), ("220", "cm"), ("260", "cm")]),
    "Candle holder": (["candle holder", "candleholder", "holder f. candle"], ["glass", "copper", "cast iron", "ceramic"], [("8", "cm"), ("12", "cm"), ("18", "cm")]),
    "Laundry basket": (["laundry basket", "basket laundry", "laundry hamper basket"], ["bamboo", "cotton", "plastic"], [("40", "l"), ("60", "l"), ("75", "l")]),
    "Waste bin": (["waste bin", "pedal bin", "bin w/ pedal", "dustbin pedal"], ["stainless steel", "steel", "plastic"], [("3", "l"), ("12", "l"), ("30", "l")]),
}
MATERIALS = {
    "ceramic": ["ceramic", "cer.", "ceram", "stoneware ceramic"],
    "glass": ["glass", "borosil. glass", "GLASS"],
    "stainless steel": ["stainless steel", "s/steel", "inox", "SS 18/10", "st. steel"],
    "steel": ["steel powder-coated", "metal (steel)", "steel"],
    "bamboo": ["bamboo", "bmb", "bamboo FSC"],
    "plastic": ["plastic", "PP plastic", "plst", "plastic BPA-free"],
    "cast iron": ["cast iron", "cast-iron", "c/iron"],
    "aluminium": ["aluminium", "alu", "aluminum"],
    "beech wood": ["beech wood", "beech", "wood (beech)"],
    "cotton": ["cotton", "100% cotton", "ctn", "org. cotton"],
    "linen": ["linen", "lin.", "100 % linen"],
    "wool": ["wool", "wool blend", "100% wool"],
    "polyester": ["polyester", "PES", "polyest."],
    "copper": ["copper", "Cu plated copper", "coppr"],
    "terracotta": ["terracotta", "terra cotta", "t/cotta"],
}
COLOURS = {
    "black": ["black", "blk", "BLACK matt", "schwarz/black"],
    "white": ["white", "wht", "off-white -> white", "WHITE"],
    "grey": ["grey", "gray", "gry", "anthracite grey"],
    "navy": ["navy", "nvy", "navy blue", "dk. navy"],
    "green": ["green", "grn", "sage green", "olive-green"],
    "red": ["red", "RED", "signal red"],
    "beige": ["beige", "bge", "sand beige"],
    "yellow": ["yellow", "yllw", "mustard yellow"],
    "pink": ["pink", "pnk", "dusty pink"],
    "natural": ["natural", "nat.", "natur finish natural"],
}
UNITS = {
    "ml": ["{n}ml", "{n} ml", "{n}ML", "cap. {n} ml", "{n} millilitre"],
    "l": ["{n}L", "{n} l", "{n} ltr", "{n} litre", "vol. {n}l", "{c} L"],
    "cm": ["{n}cm", "{n} cm", "{n} cms", "dia {n}cm", "L {n} cm", "{n}-cm"],
}
BRANDS = ["Halvora", "NORDLYS", "Casa Brill", "Tamsin & Co", "Ovre", "Pellwick", "MARO", "Lindqvar", "Jun+Ivo", "Brightholm", "Sestra", "Kolbe Home", "Fenwater", "Arro"]
TAILS = ["", "", "", "NEW", "6 pcs/ctn", "promo", "see cat. p.12", "disc. item", "MOQ 24", "boxed", "with hang tag", "2nd qual.", "summer range", "ex DE", "pallet qty"]
SHAPES = [
    "{brand} {article} {material} {colour} {size}",
    "{article} {brand}, {size}, {colour}, {material}",
    "{code} {article} {colour} {size} {material}",
    "{size} {article} ({material}) {colour} - {brand}",
    "{article}; {material}; {colour}; {size}; {code}",
    "{colour} {article} {size} {brand} {material}",
    "{brand} '{series}' {article}, {colour} {material}, {size}",
    "{code} / {brand} / {article} / {material} / {size} / {colour}",
    "{material} {article} {series} {size} col. {colour}",
    "{article} {series} {colour}, mat.: {material}, {size}",
]
SERIES = ["Alba", "Fjord", "Luna", "Mistral", "Oslo", "Tide", "Vera", "Kiln", "Dune", "Pico", "Hygge", "Basic"]
PARTS = {"train": 280, "validation": 60, "calibration": 120, "test": 100}


def row(random):
    """A line with its label, and how hard it is."""
    name = random.choice(sorted(ARTICLES))
    words, materials, sizes = ARTICLES[name]
    material, colour = random.choice(materials), random.choice(sorted(COLOURS))
    number, unit = random.choice(sizes)
    size = random.choice(UNITS[unit]).format(n=number, c=number.replace(".", ","))
    code = random.choice(["{}-{}", "{}{}", "art. {} {}", "#{}/{}"]).format(random.choice("ABKLMTX"), random.randrange(100, 9999))
    text = random.choice(SHAPES).format(
        brand=random.choice(BRANDS),
        article=random.choice(words),
        material=random.choice(MATERIALS[material]),
        colour=random.choice(COLOURS[colour]),
        size=size,
        code=code,
        series=random.choice(SERIES),
    )
    tail = random.choice(TAILS)
    text = f"{text} {tail}".strip()
    if random.random() < 0.15:
        text = text.upper()
    return text, f"{name}, {material}, {colour}, {number} {unit}", name


def main():
    draw = random.Random(7)
    seen = set()
    number = 0
    for part, n in PARTS.items():
        with open(f"{part}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", "text", "output"])
            while n:
                text, output, _ = row(draw)
                # Another line for the same goods is fine, the same line is not.
                key = "".join(sorted(text.lower().split()))
                if key in seen:
                    continue
                seen.add(key)
                number += 1
                n -= 1
                writer.writerow([f"sl-{number:04}", text, output])


if __name__ == "__main__":
    main()
