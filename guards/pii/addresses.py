"""Street addresses and postal codes by their forms: English, German, Dutch, Nordic, Romance and Slavic ones.

An address is found by a core (a street with its number, a flat, a post box, a military address), or by the words people
put before one (`ship it to …`, `Domicilio: …`), and then grows over what belongs to it: flat, town, state, postal code,
on the same line or in the next ones. Town and country alone are a `LOCATION`, which is another kind.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Final

from guards.pii.found import Found, Kind, has_context
from guards.pii.script import CAPITALS

__all__ = ["ADDRESS_KINDS", "addresses"]

ADDRESS_KINDS: Final = frozenset({"STREET_ADDRESS", "ZIP_CODE"})

CORE_SCORE: Final = (
    0.9  # a street with a number, a post box: surer than the entity model, to which it is often a person
)
CUED_SCORE: Final = 0.87  # `my address is …`
CORNER_SCORE: Final = 0.95  # over the two streets that it names
WEAK_SCORE: Final = 0.4  # a street without a number: a place that anybody may speak of
POSTCODE_SCORE: Final = 0.6

_CONTEXT: Final = (
    *(
        "address",
        "live",
        "living",
        "reside",
        "residence",
        "located",
        "deliver",
        "ship",
        "mail",
        "send",
        "sent",
        "moved",
    ),
    *("meet", "taxi", "corner of", "pick", "calle", "domicil", "direcci", "wohn", "anschrift", "adresse", "indirizzo"),
    *("habite", "street in", "enter on", "office"),
)

_W: Final = rf"[{CAPITALS}][\w.'’-]{{0,30}}"  # a capitalised word
_FEW: Final = (
    r"(?:(?:d|l|dell|all)['’]|(?:and|de|del|della|dei|di|da|das|do|dos|des|du|la|las|le|les|los|el|et|y|i|of|the|van"
    r"|den|der|am|an|im|zum|zur) )"
)
_SUFFIX: Final = (
    r"street|st|avenue|ave|av|road|rd|boulevard|blvd|lane|ln|drive|dr|court|ct|circle|cir|place|pl|square|sq"
    r"|terrace|ter"
    r"|trail|trl|parkway|pkwy|highway|hwy|crescent|cres|close|grove|gardens|mews|row|hill|rise|esplanade|parade|quay"
    r"|alley|loop|pike|crossing|heights|walk|wharf|way|str"
)
_LOW_SUFFIX: Final = r"street|st|avenue|ave|road|rd|boulevard|blvd|lane|ln|drive|court|parkway|highway|crescent|terrace"
_TYPE: Final = (  # what a street's name begins with
    r"rue|avenue|boulevard|bd|place|quai|chemin|allée|impasse|passage|cours|via|viale|piazza|piazzale|corso"
    r"|largo|vicolo"
    r"|strada|contrada|calle|avda|av|avenida|paseo|plaza|ronda|camino|carretera|ctra|travesía|glorieta"
    r"|urbanización|rambla|pso"
    r"|carrer|rúa|rua|travessa|praça|estrada|ul|al|os|pl|ulica|aleja|osiedle|odos"
)
_NUMBER: Final = r"\d{1,5}(?:[ /-]?[A-Za-z](?!\w)|/\d{1,4}|-\d{1,5})?"
_MONTHS: Final = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_UNIT: Final = (
    r"(?:suite|apt|apartment|flat|unit|floor|room|ste|wohnung|piso|puerta|planta|bajo|interno|int|esc|appt|bât"
    r"|étage|depto)"
    r"\b\.? ?#? ?\d{1,5}[A-Za-z]?|#\d{1,5}\b|\d{1,2}(?:st|nd|rd|th) floor|\d{1,2}[ºª] ?[A-Za-z\d]?\b"
)

# The cores. All are anchored at a word and bounded, so that they are linear on any text.
_ENGLISH: Final = re.compile(
    rf"(?<![\w.,$€£-])(?:\d{{1,3}} )?{_NUMBER}(?: (?:[NSEW]|[NS][EW]|North|South|East|West)\b\.?)?"
    rf"(?: (?:{_W}|\d{{1,3}}(?:st|nd|rd|th))){{1,4}}? (?i:{_SUFFIX})\b\.?(?: (?:[NSEW]|[NS][EW])\b)?(?! [ap]\.?m)"
)
_ENGLISH_LOW: Final = re.compile(
    rf"(?<![\w.,$€£-])(?!(?:1|2) (?:way|lane))\d{{1,5}}[a-z]? (?!(?:miles?|km|years?|days?|minutes?|hours?|feet"
    rf"|meters?|times?"
    rf"|percent|people|cars|of|on|in|at|to|per|more|other|and|or|a"
    rf"|the)\b)(?:[a-z][a-z.'-]{{1,20}} ){{1,3}}?(?:{_LOW_SUFFIX})\b\.?"
)
_NUMBERED: Final = re.compile(  # `98 Tylova 12`: counts only with more of an address behind
    rf"(?<![\w.,$€£-])\d{{1,5}} (?!(?i:{_MONTHS}))(?:{_W}|{_FEW}|\d{{1,2}}\.)(?: ?(?:{_W}|{_FEW}|[a-z]\."
    rf"|[a-zà-ÿ]{{2,12}}(?= )))"
    rf"{{0,5}},? {_NUMBER}\.?(?!\w)"
)
_ROMANCE: Final = re.compile(
    rf"(?<!\w)(?:{_NUMBER},? (?:bis |ter )?)?(?:\d{{1,3}} )?(?i:c/ ?|(?:{_TYPE})(?:\. ?| ))(?:{_FEW}){{0,3}}{_W}"
    rf"(?: (?:{_FEW}){{0,3}}{_W}){{0,5}}(?P<number>,? ?(?:n[.ºo°]{{1,2}}|nº|núm\.?|num\.?"
    rf"|numero)? ?(?:{_NUMBER}|[Ss]/[Nn](?!\w)))?"
)
_GERMANIC: Final = re.compile(
    rf"(?<!\w)(?:\d{{1,3}} )?(?:{_W} ){{0,3}}(?:[{CAPITALS}][\w'’-]{{0,30}}"
    r"(?:straße|strasse|str\.|gasse|weg|platz|allee|allé|alléen|ufer|damm|chaussee|brücke|lände|steig|straat"
    r"|laan|dreef|plein|gracht"
    r"|gatan|gata|vägen|väg|torget|vej|vegen|veien|veg|gade|gate|vangen|bakken|katu|tie|polku|kuja|braut)"
    rf"|[Ss]tra(?:ß|ss)e|Allee|[Uu]tca|út|útja|u\.|tér|rakpart|körút|třída|náměstí|cesta|ulica),? {_NUMBER}\.?(?!\w)"
)
_UNIT_ALONE: Final = re.compile(r"(?<!\w)(?i:suite|apt|apartment|flat)\b\.? ?#? ?\d{1,5}[A-Za-z]?\b")
_BOX: Final = re.compile(
    r"(?<!\w)(?:P\.? ?O\.? ?Box|Post Office Box|Postfach|Apartado(?: de correos)?|Casella postale"
    r"|Boîte postale) \d{2,6}\b"
    r"|(?<!\w)(?:(?:PSC|CMR|Unit|USS|USNS|USNV|USCGC) [\w.'’-]{1,20}(?: \w{1,20})?,?\s{1,3}(?:Box \d{1,5},?\s{1,3})?)?"
    r"(?:APO|FPO|DPO),? (?:AA|AE|AP) \d{5}\b",
    re.IGNORECASE,
)
_CORNER: Final = re.compile(
    rf"(?<!\w)(?:the )?corner of (?:[\w.'’-]{{1,25}} ){{1,6}}and (?:[\w.'’-]{{1,25}} ){{0,3}}?(?:{_SUFFIX}"
    rf"|\d{{1,5}})(?!\w)",
    re.IGNORECASE,
)
_STREET_ALONE: Final = re.compile(rf"(?<!\w)(?:{_W} ){{1,3}}(?i:street|avenue|ave|road|boulevard|blvd|lane|drive)\b\.?")

# Where people say that an address comes. Up to the end of the line, or of the sentence.
_CUE: Final = re.compile(
    r"(?<!\w)(?i:(?:new |home |postal |mailing |billing |shipping |secondary |his |her |my |our |the |work )*"
    r"address(?:es)?(?: is| with| to(?: the same)?|,? here (?:they are|it is)| of [\w .&'-]{1,40}? is)?:?"
    r"|(?:sen[dt]|shipp?(?:ed)?|deliver(?:ed)?|mail(?:ed)?|return(?:ed)?|taxi|moved?|post(?:ed)?"
    r"|forward)(?: [a-z]{1,12}){0,4} to:?"
    r"|(?:meet(?: me| us)?|arrived|live|lives|living|lived|resides?|residing|located|based|office is|house is"
    r"|home is|delivered) (?:at|in)"
    r"|domicilio|direcci[oó]n|dirección postal|vive en|vivo en|adresse|anschrift|wohnhaft in|wohnt in|wohne in"
    r"|indirizzo|residente in"
    r"|abita in|abito in|habite(?: au)?|domicilié(?:e)? (?:au|à)|demeurant(?: au| à)?|adres|endereço|morada"
    r"|address\?)"
    r"(?:[ \t]*:)?[ \t]*\n{0,2}[ \t]*"
)
# A form's field is an address up to the end of its line.
_FIELD: Final = re.compile(
    r"(?:^|\n|[.;]\s)[ \t>|?*]*(?i:address|domicilio|direcci[oó]n|adresse|anschrift|indirizzo|adres|morada|endereço)"
    r"[ \t]*:[ \t]*((?:[^\n.]|\.(?!\s)|(?<=\b\w)\.|(?<=\b\w\w)\.|(?<=\b\w\w\w)\.){5,120})(?=\.?\s|\.?$)"
)
_CUED: Final = re.compile(rf"(?:(?:\d{{1,5}}[A-Za-z]?|{_W}|{_FEW}|[a-z]\.|n[º°]|,|-|/|#)[ ,]{{0,2}}){{1,16}}")
_CUED_LOW: Final = re.compile(
    r"\d{1,5}[a-z]? (?:[^\W\d_][\w.'’-]{1,20} ){0,4}[^\W\d_][\w.'’-]{1,20}(?: \d{1,5}(?!\w))?"
)

# What follows a core: on the line, and in lines of their own.
_TAIL: Final = re.compile(
    rf"(?:,? ?(?i:{_UNIT}))"
    r"|(?:, ?| )\d{1,2}[ºª]? ?(?:[A-H]|(?i:izda?|dcha?|der|centro))(?!\w)\.?"
    rf"|,? (?:\d{{4,6}},? )?{_W}(?:[ -](?:{_FEW})?{_W}){{0,3}},? (?:[A-Z]{{2,3}} )?\d{{4,6}}(?:-\d{{4}})?\b"
    rf"|, {_W}(?: {_W}){{0,2}}, [A-Z]{{2}}\b(?: \d{{5}}(?:-\d{{4}})?\b)?"
    rf"|, \d{{4,5}} {_W}(?: {_W})?"
    rf"|(?:,? {_W}(?: {_W}){{0,2}})?,? [A-Z]{{1,2}}\d[A-Z\d]? ?\d[A-Z]{{2}}\b"
    rf"|, {_W}(?: (?:{_FEW})?{_W}){{0,4}}(?: \d{{4,6}}\b)?(?=\s*(?:[.,;:?!)\n]|$|\b(?:for|last|in|and|as|please)\b))"
)
_TAIL_TOWN: Final = re.compile(
    rf",? {_W}(?:[ -](?:{_FEW})?{_W}){{0,4}}(?=\s*(?:[.,;:?!)\n]|$|\b(?:for|last|in|and|as|please)\b))"
)
_LINE: Final = re.compile(
    rf"(?P<break>[ \t]*\n[ \t]*(?:[>|?*]{{1,4}}[ \t]{{0,2}}|,[ \t]?)?)(?P<body>(?i:{_UNIT})|(?:\d{{4,6}} )?"
    rf"(?:{_W}|[A-Z]{{2,3}})(?:[ ,-]{{1,2}}(?:{_FEW}"
    rf"|[{CAPITALS}])[\w.'’-]*){{0,6}}(?:,? \d{{4,6}}(?:-\d{{4}})?)?|\d{{4,6}})(?=[ \t]*(?:\n|$|[.,;?!)]"
    rf"|\b(?:for|last|in|and|as|please)\b))"
)
_BLANK_LINE_MORE: Final = re.compile(
    rf"[ \t]*\n[ \t]*\n[ \t]*(?:[>"
    rf"|?*]{{1,4}}[ \t]{{0,2}})?{_W}(?: {_W}){{0,4}} \d{{4,6}}(?:-\d{{4}})?(?=[ \t]*(?:\n|$))"
)
_LINE_BEFORE: Final = re.compile(
    rf"(?:\d{{1,5}}[A-Za-z]? [^\n>|?*:,]{{2,40}}|(?:{_W}|{_FEW})(?: ?(?:{_W}"
    rf"|{_FEW})){{0,5}} {_NUMBER}\.?),?[ \t]*\n?[ \t>|?*]{{0,8}}$"
)
_FULL_STOP: Final = re.compile(r"[^\W\d_]{5}\.$")
MAX_LINES: Final = 4  # of a postal address after its street
_BEFORE_CHARS: Final = 64

_LABELLED_CODE: Final = re.compile(
    r"(?<!\w)(?i:zip(?: ?code)?|post(?:al)? ?code|c[oó]digo postal|code postal|c\.?p\.?|plz|postleitzahl|cap|postcode)"
    r"(?:[ \t]*[:#]|[ \t]+(?i:is|ist|es|est|è))?[ \t]*([A-Z]?\d[\dA-Z]{1,4}(?:[ -]?\d[\dA-Z]{1,3})?)(?!\w)"
)
_STATE_AND_ZIP: Final = re.compile(r"(?<!\w)[A-Z]{2} (\d{5}(?:-\d{4})?)(?![\w-])")
_ZIP_4: Final = re.compile(r"(?<![\w.-])\d{5}-\d{4}(?![\w-])")
_UK_CODE: Final = re.compile(
    r"(?<!\w)(?:GIR ?0AA|[A-PR-UWYZ](?:\d{1,2}|\d[A-HJKPSTUW]|[A-HK-Y]\d{1,2}"
    r"|[A-HK-Y]\d[ABEHMNPRVWXY]) \d[ABD-HJLNP-UW-Z]{2})(?!\w)"
)
_STATES: Final = frozenset(
    [
        "AL",
        "AK",
        "AZ",
        "AR",
        "CA",
        "CO",
        "CT",
        "DE",
        "DC",
        "FL",
        "GA",
        "HI",
        "ID",
        "IL",
        "IN",
        "IA",
        "KS",
        "KY",
        "LA",
        "ME",
        "MD",
        "MA",
        "MI",
        "MN",
        "MS",
        "MO",
        "MT",
        "NE",
        "NV",
        "NH",
        "NJ",
        "NM",
        "NY",
        "NC",
        "ND",
        "OH",
        "OK",
        "OR",
        "PA",
        "RI",
        "SC",
        "SD",
        "TN",
        "TX",
        "UT",
        "VT",
        "VA",
        "WA",
        "WV",
        "WI",
        "WY",
        "PR",
        "GU",
        "VI",
    ]
)

_GATE: Final = re.compile(r"\d|(?i:street|avenue|road|calle|corner of)")


def addresses(text: str, kinds: Collection[Kind]) -> Iterator[Found]:
    """Addresses and postal codes; they may overlap. Linear in the text's length."""
    if _GATE.search(text) is None:
        return
    if "STREET_ADDRESS" in kinds:
        yield from _streets(text)
    if "ZIP_CODE" in kinds:
        yield from _codes(text)


def _streets(text: str) -> Iterator[Found]:
    for pattern in (_ENGLISH, _GERMANIC, _ENGLISH_LOW):
        for match in pattern.finditer(text):
            yield _grown(text, *match.span(), CORE_SCORE)
    for match in _ROMANCE.finditer(text):
        sure = match.group("number") is not None or match.group()[0].isdigit()
        if sure or has_context(text, match.start(), _CONTEXT):
            yield _grown(text, *match.span(), CORE_SCORE if sure else CUED_SCORE)
    for match in _BOX.finditer(text):
        yield _grown(text, *match.span(), CORE_SCORE)
    for match in _UNIT_ALONE.finditer(text):
        begin = max(0, match.start() - _BEFORE_CHARS)
        before = _LINE_BEFORE.search(text, begin, match.start())
        yield _grown(text, before.start() if before else match.start(), match.end(), CORE_SCORE)
    for match in _NUMBERED.finditer(text):
        grown = _grown(text, *match.span(), CUED_SCORE)
        if grown.end > match.end():
            yield grown
    for match in _CORNER.finditer(text):
        yield Found("STREET_ADDRESS", *match.span(), CORNER_SCORE)
    for match in _STREET_ALONE.finditer(text):
        score = CUED_SCORE if has_context(text, match.start(), _CONTEXT) else WEAK_SCORE
        yield Found("STREET_ADDRESS", *match.span(), score)
    for field in _FIELD.finditer(text):
        if re.search(r"\d|\bs/n\b", field.group(1)):
            start, end = field.span(1)
            yield _grown(text, start, end - (len(field.group(1)) - len(field.group(1).rstrip(" ,;"))), CUED_SCORE)
    for cue in _CUE.finditer(text):
        cued = _CUED.match(text, cue.end()) or _CUED_LOW.match(text, cue.end())
        if cued is not None and re.search(r"\d", cued.group()) and re.search(r"[^\W\d_]{3}", cued.group()):
            value = cued.group().rstrip(" ,-/#")
            yield _grown(text, cued.start(), cued.start() + len(value), CUED_SCORE)


def _grown(text: str, start: int, end: int, score: float) -> Found:
    """The address with what follows its core."""
    for _ in range(3):
        if (more := _TAIL.match(text, end)) is None:
            break
        end = more.end()
    if (town := _TAIL_TOWN.match(text, end)) is not None and score >= CUED_SCORE:
        end = town.end()
    for _ in range(MAX_LINES):
        line = _LINE.match(text, end)
        if line is None:
            break
        end = line.end()
    if (more := _BLANK_LINE_MORE.match(text, end)) is not None:
        end = more.end()
    if _FULL_STOP.search(text, start, end):  # a sentence's, no abbreviation's
        end -= 1
    return Found("STREET_ADDRESS", start, end, score)


def _codes(text: str) -> Iterator[Found]:
    for match in _LABELLED_CODE.finditer(text):
        yield Found("ZIP_CODE", *match.span(1), POSTCODE_SCORE)
    for match in _STATE_AND_ZIP.finditer(text):
        if text[match.start() : match.start() + 2] in _STATES:
            yield Found("ZIP_CODE", *match.span(1), POSTCODE_SCORE)
    for match in _ZIP_4.finditer(text):
        yield Found("ZIP_CODE", *match.span(), POSTCODE_SCORE)
    for match in _UK_CODE.finditer(text):
        yield Found("ZIP_CODE", *match.span(), POSTCODE_SCORE)
