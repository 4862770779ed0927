"""Writes the rows of this example from letters.txt: every letter is used in one split only, each time with other values and writings.

python3 make.py     (no arguments; the same files every time)
"""

import datetime
import json
import pathlib
import random

here = pathlib.Path(__file__).parent
random.seed(7)
PEOPLE = "Anna Kowalska|J. Brandt|Marta|T. Okafor|Lena Vogel|Priya|M. Rossi|Sven|Claire Dubois|R. Haddad|Tom|I. Petrova".split("|")
FIRMS = "Nordwerk GmbH|Halden & Sons Ltd|Brückner Anlagen|Tavola SpA|Osprey Pumps|Lindqvist AB|Meridian Foods|Kaapstad Trading|Vela Optics|Grünfeld AG".split("|")
CITIES = "Rotterdam|Leipzig|Graz|Porto|Gdańsk|Lyon|Leeds|Malmö|Turin|Ghent|Brno|Cork".split("|")
MONTHS = "January February March April May June July August September October November December".split()


def number():
    return random.choice(
        [
            lambda: f"PO-{random.randint(10000, 99999)}",
            lambda: f"45{random.randint(10**7, 10**8 - 1)}",
            lambda: f"{random.randint(2025, 2027)}/{random.randint(100, 9999)}",
            lambda: f"B{random.randint(1000, 9999)}-{random.choice('ABCK')}",
            lambda: f"{random.choice(['NW', 'HS', 'BE', 'OR'])}{random.randint(100000, 999999)}",
        ]
    )()


def article():
    return random.choice(
        [
            lambda: f"{random.choice('ABDFKLMX')}{random.choice('TRVZ')}-{random.randint(100, 9999)}",
            lambda: f"{random.randint(10, 99)}.{random.randint(100, 999)}.{random.randint(10, 99)}",
            lambda: f"{random.choice(['pump', 'valve', 'seal', 'filter', 'motor'])} {random.choice('GHPS')}{random.randint(10, 990)}",
            lambda: f"{random.randint(100000, 999999)}",
            lambda: f"{random.choice(['HX', 'QL', 'SV'])}{random.randint(10, 99)}/{random.randint(1, 40)}",
        ]
    )()


def date(after=None):
    day = (after or datetime.date(2026, 1, 5)) + datetime.timedelta(days=random.randint(3, 60 if after else 300))
    name = MONTHS[day.month - 1]
    written = random.choice(
        [
            day.isoformat(),
            f"{day.day}.{day.month}.{day.year}",
            f"{day.day:02}.{day.month:02}.{day.year}",
            f"{day.day:02}/{day.month:02}/{day.year}",
            f"{day.day} {name} {day.year}",
            f"{name} {day.day}, {day.year}",
            f"{day.day}-{name[:3]}-{day.year % 100}",
            f"{day.day}. {name} {day.year}",
        ]
    )
    return day, written


def money():
    cents = random.choice([random.randint(2000, 99999), random.randint(100000, 9999999)])
    if random.random() < 0.4:
        cents -= cents % 100
    whole, part = divmod(cents, 100)
    amount = whole if part == 0 else cents / 100
    english, german = f"{whole:,}", f"{whole:,}".replace(",", ".")
    if part:
        written = random.choice([f"{english}.{part:02}", f"{german},{part:02}", f"{whole}.{part:02}"])
    else:
        written = random.choice([english, str(whole), f"{english}.00", f"{german},00"])
    code, signs = random.choice([("EUR", ["€", "EUR", "euros", "Euro"]), ("USD", ["$", "USD", "US dollars"]), ("GBP", ["£", "GBP", "pounds"]), ("CHF", ["CHF"])])
    sign = random.choice(signs)
    if sign in "€$£":
        return amount, code, random.choice([f"{sign}{written}", f"{sign} {written}"])
    before = sign in ("EUR", "USD", "GBP", "CHF") and random.random() < 0.5
    return amount, code, f"{sign} {written}" if before else f"{written} {sign}"


def row(letter, name):
    ordered, d1 = date()
    due, d2 = date(ordered)
    amount, code, m = money()
    po, articles = number(), [article(), article()]
    text = letter.format(
        po=po, d1=d1, d2=d2, m=m, a1=articles[0], a2=articles[1], q=random.randint(2, 900), q2=random.randint(2, 90), oth=number(),
        pers=random.choice(PEOPLE), co=random.choice(FIRMS), city=random.choice(CITIES), ph=f"+49 30 {random.randint(10**5, 10**6)}",
    )
    output = {"order_number": po, "articles": [a for a, slot in zip(articles, ("{a1}", "{a2}")) if slot in letter]}
    if "{d1}" in letter:
        output["order_date"] = ordered.isoformat()
    if "{d2}" in letter:
        output["delivery_date"] = due.isoformat()
    if "{m}" in letter:
        output["total"] = {"amount": amount, "currency": code}
    return {"text": text, "output": output, "letter": name}


letters = [(f"letter-{at + 1:03}", line) for at, line in enumerate((here / "letters.txt").read_text().splitlines())]
random.shuffle(letters)
splits = [("train", 48, 5), ("validation", 12, 4), ("calibration", 29, 3), ("test", 20, 3)]
assert sum(n for _, n, _ in splits) == len(letters), len(letters)
for split, n, times in splits:
    taken, letters = letters[:n], letters[n:]
    rows = [row(letter, name) for name, letter in taken for _ in range(times)]
    random.shuffle(rows)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (here / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    print(split, len(rows))
