"""Templates with a value that a pattern cannot give: numbers with units, dates, coordinates, currencies, lists.

Each function takes the template's arguments and returns its text, or None (a hole) if it cannot be rendered. The table
`templates.yaml` names them with `@`. Units and dates are worded as zhwiki words them; {{convert}} says its first unit.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from preprocess.wiki.marks import literal, plain
from preprocess.wiki.parser_functions import group_thousands

Arguments = dict[str, str]  # "1", "2", … and names
Renderer = Callable[[Arguments], str | None]

UNITS = {
    "km": "公里", "m": "米", "dm": "分米", "cm": "厘米", "mm": "毫米", "um": "微米", "μm": "微米", "µm": "微米",
    "nm": "纳米", "mi": "英里", "mile": "英里", "ft": "英尺", "foot": "英尺", "in": "英寸", "inch": "英寸",
    "yd": "码", "nmi": "海里", "au": "天文单位", "ly": "光年", "pc": "秒差距", "li": "里", "fathom": "英寻",
    "pm": "皮米", "km2": "平方公里", "sqkm": "平方公里", "m2": "平方米", "sqm": "平方米", "cm2": "平方厘米",
    "mm2": "平方毫米", "ha": "公顷", "hectare": "公顷", "acre": "英亩", "sqmi": "平方英里", "mi2": "平方英里",
    "sqft": "平方英尺", "ft2": "平方英尺", "sqin": "平方英寸", "km3": "立方公里", "m3": "立方米", "cm3": "立方厘米",
    "cc": "立方厘米", "cuft": "立方英尺", "l": "升", "litre": "升", "ml": "毫升", "hl": "百升", "gal": "加仑",
    "usgal": "美制加仑", "impgal": "英制加仑", "floz": "液盎司", "bbl": "桶", "oilbbl": "桶", "kg": "公斤",
    "g": "克", "mg": "毫克", "μg": "微克", "t": "吨", "tonne": "吨", "mt": "公吨", "lt": "长吨", "st": "短吨",
    "lb": "磅", "lbs": "磅", "oz": "盎司", "ozt": "金衡盎司", "ct": "克拉", "stone": "英石", "c": "°C", "°c": "°C",
    "f": "°F", "°f": "°F", "k": "K", "km/h": "公里每小时", "kph": "公里每小时", "m/s": "米每秒", "km/s": "公里每秒",
    "mph": "英里每小时", "mi/h": "英里每小时", "kn": "节", "knot": "节", "ft/s": "英尺每秒", "m/s2": "米每二次方秒",
    "m3/s": "立方米每秒", "cuft/s": "立方英尺每秒", "w": "瓦", "kw": "千瓦", "mw": "兆瓦", "gw": "吉瓦",
    "hp": "马力", "bhp": "制动马力", "ps": "公制马力", "pa": "帕斯卡", "kpa": "千帕", "mpa": "兆帕", "hpa": "百帕",
    "bar": "巴", "psi": "磅力每平方英寸", "atm": "大气压", "j": "焦耳", "kj": "千焦", "mj": "兆焦", "cal": "卡",
    "kcal": "千卡", "kwh": "千瓦时", "ev": "电子伏特", "n": "牛顿", "kn-f": "千牛", "lbf": "磅力", "n.m": "牛顿米",
    "nm-t": "牛顿米", "v": "伏特", "a": "安培", "hz": "赫兹", "khz": "千赫兹", "mhz": "兆赫兹", "ghz": "吉赫兹",
    "s": "秒", "min": "分钟", "h": "小时", "hr": "小时", "d": "天", "day": "天", "year": "年", "deg": "度",
    "/km2": "每平方公里", "pd/sqkm": "每平方公里", "/sqkm": "每平方公里", "pd/km2": "每平方公里",
    "g/cm3": "克每立方厘米", "kg/m3": "公斤每立方米", "kg/m2": "公斤每平方米", "l/100km": "升每百公里",
    "byte": "字节", "kb": "千字节", "mb": "兆字节", "gb": "吉字节", "tb": "太字节", "mgal": "毫伽", "sv": "希沃特",
}  # fmt: skip
# written with other letters in upper case: mW is not MW, Nm not nm
CASED = {
    "MW": "兆瓦", "mW": "毫瓦", "Nm": "牛顿米", "N.m": "牛顿米", "mN": "毫牛", "MN": "兆牛", "kN": "千牛",
    "Mg": "兆克", "Mm": "兆米", "mPa": "毫帕", "MPa": "兆帕", "MJ": "兆焦", "mJ": "毫焦", "PS": "公制马力",
    "Gal": "伽", "LT": "长吨", "ST": "短吨", "Mm3": "百万立方米", "Mt": "百万吨", "MT": "公吨", "Mb": "兆比特",
    "kb": "千比特",
}  # fmt: skip
BETWEEN = {
    "-": "–", "–": "–", "and": "和", "to": "至", "or": "或", "by": "乘", "x": "×", "×": "×", "+/-": "±", "±": "±",
    "和": "和", "至": "至",
}  # fmt: skip
ABOVE = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
BELOW = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?|[-+−]?\.\d+")


def raised(text: str) -> str:
    """2 -> ², n+1 -> ⁿ⁺¹; what has no raised form becomes ^(…)."""
    text = text.strip().replace("''", "")
    moved = plain(text).translate(ABOVE)
    if all(char in "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ " for char in moved):
        return moved
    return f"^{text}" if len(text) == 1 and text.isalpha() else f"^({text})"


def lowered(text: str) -> str:
    """2 -> ₂; what has no lowered form stays as it is."""
    text = text.strip()
    moved = plain(text).translate(BELOW)
    return moved if all(char in "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ " for char in moved) else text


def convert(a: Arguments) -> str | None:
    """{{convert|120|km|mi}} -> 120公里; {{convert|10|-|20|km}} -> 10–20公里; {{convert|5|ft|6|in}} -> 5英尺6英寸."""
    values = [
        value for _, value in sorted(((int(k), v) for k, v in a.items() if k.isdigit()), key=lambda pair: pair[0])
    ]
    said, place = "", 0
    while place + 1 < len(values):
        amount = _amount(values[place])
        if amount is None:
            return said or None
        after = plain(values[place + 1]).strip()
        if after.lower() in BETWEEN and place + 2 < len(values):
            said += amount + BETWEEN[after.lower()]
            place += 2
            continue
        unit = CASED.get(after) or UNITS.get(after.lower())
        if unit is None:
            return None
        said += amount + unit
        place += 2
        compound = place + 1 < len(values) and (after, plain(values[place + 1])) in (
            ("ft", "in"),
            ("lb", "oz"),
            ("st", "lb"),
        )
        if not compound:
            return said
    return said or None


def _amount(text: str) -> str | None:
    text = plain(text).strip()
    if grouped := group_thousands(text):
        return grouped
    return text if re.fullmatch(r"[-+−]?\d[\d,.]*(?:[ ⁄/]\d+/?\d*)?(?:e[+-]?\d+)?", text) else None


def val(a: Arguments) -> str | None:
    """{{val|1.5|0.2|e=6|u=m/s}} -> (1.5±0.2)×10⁶ m/s."""
    first = a.get("1", "")
    value = plain(first)
    if not NUMBER.fullmatch(value) and not re.fullmatch(r"[\d.,()−+-]+(?:e[+-]?\d+)?", value):
        return None
    if a.get("fmt") == "commas":
        value = group_thousands(value) or value
    error, below = a.get("2", ""), a.get("3", "")
    if below:
        value = f"{value}+{error.lstrip('+')}−{below.lstrip('-−')}"
    elif error:
        value = f"{value}±{error}"
    if power := a.get("e", ""):
        value = (f"({value})" if error else value) + f"×10{raised(power)}"
    unit = a.get("u") or a.get("ul") or ""
    if per := a.get("up") or a.get("upl") or "":
        unit += "/" + per
    unit = re.sub(r"(?<=[a-zA-Zμ])(-?\d+)", lambda match: raised(match[1]), unit)
    gap = "" if not unit or unit[0] in "%°′″" else " "
    return f"{a.get('p', '')}{value}{a.get('s', '')}{gap}{unit}"


def grouped(a: Arguments) -> str | None:
    """{{nts|1234567}} -> 1,234,567."""
    return group_thousands(a.get("1", ""))


def day(year: str, month: str = "", date: str = "") -> str | None:
    """2020, 5, 1 -> 2020年5月1日; None if they are no date."""
    found = [plain(part).strip().removesuffix(mark) for part, mark in zip((year, month, date), "年月日")]
    if not re.fullmatch(r"前?\d{1,4}", found[0]) or not all(re.fullmatch(r"\d{0,2}", part) for part in found[1:]):
        return None
    said = found[0].lstrip("0") + "年"
    if found[1] and 1 <= int(found[1]) <= 12:
        said += f"{int(found[1])}月"
        if found[2] and 1 <= int(found[2]) <= 31:
            said += f"{int(found[2])}日"
    return said


def date(a: Arguments) -> str | None:
    """{{start date|1980|5|1}}, {{date|1980-05-01}} -> 1980年5月1日."""
    first = plain(a.get("1", "")).strip()
    if found := re.fullmatch(r"(\d{4})[-/.](\d{1,2})(?:[-/.](\d{1,2}))?", first):
        return day(found[1], found[2], found[3] or "")
    if found := re.fullmatch(r"(\d{1,4})年(?:(\d{1,2})月(?:(\d{1,2})日)?)?", first):
        return first
    return day(first, a.get("2", ""), a.get("3", ""))


def as_of(a: Arguments) -> str | None:
    """{{as of|2020|5}} -> 截至2020年5月."""
    if a.get("alt"):
        return a["alt"]
    said = date(a)
    return None if said is None else "截至" + said


def lived(a: Arguments) -> str | None:
    """{{bd|701年||762年|12月}} -> 701年－762年12月: birth and death."""
    born = a.get("1", "") + a.get("2", "")
    died = a.get("3", "") + a.get("4", "")
    return f"{born}－{died}" if born or died else ""


def reign(a: Arguments) -> str | None:
    """{{reign|626|649}} -> 626年－649年在位, without 年 if it is written already."""
    years = [year + "年" if year.isdigit() else year for year in (a.get("1", ""), a.get("2", ""))]
    return "－".join(years) + "在位" if any(years) else None


def age(a: Arguments) -> str | None:
    """Years between two dates that are both given; an age today is a hole."""
    parts = [plain(a.get(str(place), "")) for place in range(1, 7)]
    if not all(part.isdigit() for part in parts):
        return None
    one, two = [int(part) for part in parts[:3]], [int(part) for part in parts[3:]]
    return str(two[0] - one[0] - (two[1:] < one[1:]))


def coordinates(a: Arguments) -> str | None:
    """{{coord|39|54|N|116|23|E}} -> 39°54′N 116°23′E; nothing if it is only shown beside the title."""
    if a.get("display", "").strip().lower() in ("title", "t"):
        return ""
    values = [plain(a[str(place)]).strip() for place in range(1, 9) if a.get(str(place))]
    values = [value for value in values if ":" not in value]
    if len(values) >= 2 and all(NUMBER.fullmatch(value) for value in values[:2]) and len(values) < 4:
        north, east = values[:2]
        return (
            f"{north.lstrip('-−+')}°{'S' if north[0] in '-−' else 'N'} "
            f"{east.lstrip('-−+')}°{'W' if east[0] in '-−' else 'E'}"
        )
    said: list[str] = []
    current: list[str] = []
    for value in values:
        if value.upper() in ("N", "S", "E", "W"):
            said.append("".join(part + mark for part, mark in zip(current, "°′″")) + value.upper())
            current = []
        elif NUMBER.fullmatch(value):
            current.append(value)
        else:
            return None
    return " ".join(said) if len(said) == 2 else None


def fraction(a: Arguments) -> str | None:
    """{{frac|1|2}} -> 1/2; {{frac|3|1|2}} -> 3 1/2; {{frac|2}} -> 1/2."""
    parts = [a[place] for place in ("1", "2", "3") if a.get(place)]
    if not parts:
        return None
    return {1: "1/{0}", 2: "{0}/{1}", 3: "{0} {1}/{2}"}[len(parts)].format(*parts)


def power_of_ten(a: Arguments) -> str | None:
    return f"×10{raised(a['1'])}" if a.get("1") else None


def ten_to(a: Arguments) -> str | None:
    return f"10{raised(a['1'])}" if a.get("1") else None


def superscript(a: Arguments) -> str | None:
    return raised(a["1"]) if a.get("1") else None


def subscript(a: Arguments) -> str | None:
    return lowered(a["1"]) if a.get("1") else None


def chemical(a: Arguments) -> str | None:
    """{{chem|H|2|O}}, {{chem2|H2O}} -> H₂O."""
    said = "".join(a[str(place)] for place in range(1, 20) if a.get(str(place)))
    return re.sub(r"(?<=[A-Za-z)\]])\d+", lambda match: lowered(match[0]), said) or None


def together(a: Arguments) -> str | None:
    """{{gaps|12|345}} -> 12345."""
    return "".join(_in_order(a)) or None


def listed(a: Arguments) -> str | None:
    """{{ubl|甲|乙}}, {{hlist|甲|乙}}, {{plainlist|* 甲 * 乙}} -> 甲、乙."""
    items = [item for value in _in_order(a) for item in re.split(r"(?:^|\n)\s*\*+\s*", value)]
    return "、".join(item.strip() for item in items if item.strip()) or None


def _in_order(a: Arguments) -> list[str]:
    return [a[str(place)] for place in range(1, 40) if a.get(str(place))]


def quotation(a: Arguments) -> str | None:
    """{{quote|甲|作者}}: the quotation as lines of its own, with its author. {{quote}} inside a line is put in “”."""
    text = a.get("1") or a.get("text") or a.get("quote") or a.get("引文") or a.get("content") or ""
    if not text:
        return None
    author = a.get("2") or a.get("author") or a.get("sign") or ""
    source = a.get("3") or a.get("source") or ""
    said = text + (f"——{author}" if author else "") + (f"，{source}" if author and source else "")
    return (
        f"\n{said}\n"
        if a.get("begins line") or "\n" in text
        else said
        if text[0] in "「“『"
        else f"“{text}”" + said[len(text) :]
    )


def money(sign: str, after: str = "") -> Renderer:
    def render(a: Arguments) -> str | None:
        amount = a.get("1", "")
        return f"{sign}{group_thousands(amount) or amount}{after}" if amount else None

    return render


SIGNS = {
    "usd": "US$", "eur": "€", "gbp": "£", "jpy": "JP¥", "cny": "¥", "rmb": "¥", "twd": "NT$", "hkd": "HK$",
    "krw": "₩", "aud": "A$", "cad": "C$", "sgd": "S$", "inr": "₹", "rub": "₽", "chf": "CHF ", "mop": "MOP$",
}  # fmt: skip


def currency(a: Arguments) -> str | None:
    """{{currency|100|USD}} -> US$100."""
    sign = SIGNS.get(a.get("2", "USD").lower())
    return money(sign)(a) if sign else None


def labelled(a: Arguments) -> str | None:
    """{{zh|s=简|t=繁|p=jian}} -> 简体：简；繁体：繁；拼音：jian."""
    labels = {
        "c": "中文", "s": "简体", "t": "繁体", "p": "拼音", "hp": "拼音", "w": "威妥玛拼音", "j": "粤拼",
        "y": "耶鲁拼音", "poj": "白话字", "l": "直译",
    }  # fmt: skip
    said = "；".join(f"{label}：{a[name]}" for name, label in labels.items() if a.get(name))
    return said or a.get("1") or ("" if not a else None)  # alone it marks the language of a link


def pronounced(a: Arguments) -> str | None:
    """{{IPAc-en|k|æ|t}} -> /kæt/."""
    sounds = [plain(sound) for sound in _in_order(a) if sound not in ("lang", "pron", "uk", "us", "pronunciation")]
    return literal("/" + "".join(sounds) + "/") if sounds else None


def era_before(a: Arguments) -> str | None:
    year = a.get("1", "")
    return None if not year else f"前{year}" + ("年" if year.isdigit() else "")


def first_shown(a: Arguments) -> str | None:
    """{{color|red|text}}, {{font|text=…}}: the last numbered argument, or `text`."""
    return a.get("text") or "".join(_in_order(a)[-1:]) or None


def as_set(a: Arguments) -> str | None:
    """{{mset|a|b}} -> {a, b}: a set."""
    return literal("{") + ", ".join(_in_order(a)) + literal("}") if _in_order(a) else None


VALUES: dict[str, Renderer] = {
    "convert": convert, "val": val, "grouped": grouped, "date": date, "as_of": as_of, "lived": lived, "age": age,
    "coordinates": coordinates, "fraction": fraction, "power_of_ten": power_of_ten, "ten_to": ten_to, "reign": reign,
    "superscript": superscript, "subscript": subscript, "chemical": chemical, "together": together, "listed": listed,
    "quotation": quotation, "currency": currency, "labelled": labelled, "pronounced": pronounced,
    "era_before": era_before, "first_shown": first_shown, "set": as_set,
    "usd": money("", "美元"), "rmb": money("¥"), "twd": money("新台币", "元"), "hkd": money("", "港元"),
    "jpy": money("", "日元"), "eur": money("", "欧元"), "gbp": money("", "英镑"), "krw": money("", "韩元"),
    "us_dollar": money("US$"), "nt_dollar": money("NT$"), "hk_dollar": money("HK$"),
}  # fmt: skip
