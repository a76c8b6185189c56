"""What a form's label says: patient, member, policy and identity numbers, towns and countries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from guards.pii.found import Found
from guards.pii.script import NAME

__all__ = ["labelled_numbers", "labelled_places"]

SCORE: Final = 0.65

_LABEL: Final = (
    r"(?:patient|member|customer|client|employee|student|insurance|policy|medical record|health(?: card)?"
    r"|national(?: id)?"
    r"|identity(?: card)?|identification|personal|social|voter|resident|subscriber|beneficiary|tax(?:payer)?)"
    r"(?:['’]s)? ?(?:id|no\.?|nr\.?|number|#|card no\.?|card number|identifier)"
    r"|mrn|nhc|n\.?h\.?c\.?|cipa|nass|dni|nif|nie|c\.?i\.?p\.?|episodio|n[ºo°.]{1,2} ?(?:de )?col(?:egiado)?\.?"
    r"|nºcol|número de (?:historia|afiliación"
    r"|colegiado|paciente|identificación)|historia clínica|n[ºo] ?(?:de )?historia|versichertennummer"
    r"|kundennummer|patientennummer"
    r"|ausweisnummer|personalnummer|matrikelnummer|numéro (?:client|patient|de dossier|d['’]adhérent)"
    r"|codice (?:paziente|cliente)"
)
_LABELLED: Final = re.compile(
    rf"(?<!\w)(?:{_LABEL})[ \t]*(?:[:#=][ \t]*|(?:is|ist|es|est|è)[ \t]+|[ \t])(?:nhc[ -])?"
    r"((?=[A-Z\d./-]{0,12}\d)[A-Z\d](?:[./-]?[A-Z\d]){3,19}(?: \d{2,12}){0,3}|\d{2}(?: \d{2,8}){1,3})(?!\w)",
    re.IGNORECASE,
)
_PLACE: Final = re.compile(
    r"(?<!\w)(?i:localidad(?:[ \t]*/[ \t]*provincia)?|provincia|poblaci[oó]n|ciudad|pa[ií]s(?: de nacimiento)?"
    r"|city|town|country|state"
    rf"|stadt|wohnort|ville|pays|citt[aà]|comune|cidade)[ \t]*:[ \t]*({NAME})"
)
_GATE: Final = re.compile(r"\d{2}")


def labelled_numbers(text: str) -> Iterator[Found]:
    """`ID_NUMBER`s. Linear in the text's length."""
    if _GATE.search(text) is None:
        return
    for match in _LABELLED.finditer(text):
        if sum(char.isdigit() for char in match.group(1)) >= 3:
            yield Found("ID_NUMBER", *match.span(1), SCORE)


def labelled_places(text: str) -> Iterator[Found]:
    """`LOCATION`s. Linear in the text's length."""
    for match in _PLACE.finditer(text):
        yield Found("LOCATION", *match.span(1), SCORE)
