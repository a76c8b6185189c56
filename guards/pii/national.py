"""National numbers of persons: Presidio's recognizers of these countries, and France's, which Presidio lacks.

Most of them are any nine or eleven digits to a pattern: without a checksum that few numbers pass, a context word in the
country's own language or in English must stand before the number.
"""

from __future__ import annotations

from typing import Final

from presidio_analyzer import Pattern, PatternRecognizer
from presidio_analyzer import predefined_recognizers as presidio

from guards.pii.patterns import Recognizer

__all__ = ["NATIONAL"]


class _FrenchSocialSecurity(PatternRecognizer):  # type: ignore[misc]
    """Numéro de sécurité sociale (NIR): sex, year, month, department, commune, order, key."""

    _NIR = r"\b[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d{2}\b"

    def __init__(self) -> None:
        super().__init__(
            supported_entity="FR_NIR",
            patterns=[Pattern("NIR", self._NIR, 0.5)],
            context=["sécurité sociale", "nir", "insee", "carte vitale"],
            supported_language="fr",
        )

    def validate_result(self, pattern_text: str) -> bool:
        """The key is 97 less the number modulo 97; Corsica's 2A and 2B count as 19 and 18."""
        number = pattern_text.replace(" ", "").upper().replace("2A", "19").replace("2B", "18")
        return 97 - int(number[:-2]) % 97 == int(number[-2:])


_N7: Final = r"\d(?:[ .:/-]?\d){6}"  # seven digits, together or in groups
_L_D: Final = r"[A-Za-z]{1,3} ?\d{2}"
_D_L: Final = r"\d{6}[-+]?[A-Za-z]"

NATIONAL: Final = (
    Recognizer("AU_MEDICARE", presidio.AuMedicareRecognizer, _N7, context=("medicare",), needs_context=True),
    Recognizer("AU_TFN", presidio.AuTfnRecognizer, _N7, context=("tax file", "tfn"), needs_context=True),
    Recognizer(
        "CA_SIN",
        presidio.CaSinRecognizer,
        _N7,
        context=("social insurance", "sin ", "nas ", "assurance sociale"),
        needs_context=True,
    ),
    Recognizer("DE_FUEHRERSCHEIN", presidio.DeFuehrerscheinRecognizer, r"[A-Z]{2}\d{8}", needs_context=True),
    Recognizer("DE_HEALTH_INSURANCE", presidio.DeHealthInsuranceRecognizer, r"[A-Z]\d{9}", needs_context=True),
    Recognizer("DE_ID_CARD", presidio.DeIdCardRecognizer, r"[A-Z][A-Z0-9]{7}\d", needs_context=True),
    Recognizer("DE_PASSPORT", presidio.DePassportRecognizer, r"[A-Z][A-Z0-9]{7}\d", needs_context=True),
    Recognizer("DE_SOCIAL_SECURITY", presidio.DeSocialSecurityRecognizer, r"\d{8}[A-Z]\d{3}"),
    Recognizer(
        "DE_TAX_ID",
        presidio.DeTaxIdRecognizer,
        r"\d{11}",
        context=("steuer", "identifikationsnummer", "idnr", "tax id"),
        needs_context=True,
    ),
    Recognizer("DE_TAX_NUMBER", presidio.DeTaxNumberRecognizer, r"\d/\d|\d{13}", needs_context=True),
    Recognizer("ES_NIE", presidio.EsNieRecognizer, r"[X-Z]\d{7}"),
    Recognizer("ES_NIF", presidio.EsNifRecognizer, r"\d{7}-?[A-Z]"),
    Recognizer("ES_PASSPORT", presidio.EsPassportRecognizer, r"[A-Z]{3}\d{6}", needs_context=True),
    Recognizer("FI_PERSONAL_IDENTITY_CODE", presidio.FiPersonalIdentityCodeRecognizer, r"\d{6}[-+A-FU-Y]\d{3}"),
    Recognizer("FR_NIR", _FrenchSocialSecurity, r"[12] ?\d\d ?\d\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d"),
    Recognizer("IN_AADHAAR", presidio.InAadhaarRecognizer, _N7, context=("aadha", "uidai"), needs_context=True),
    Recognizer("IN_PAN", presidio.InPanRecognizer, r"[A-Za-z]{5}\d{4}", context=("permanent account", "pan ")),
    Recognizer("IN_PASSPORT", presidio.InPassportRecognizer, r"[A-Z]\d\d ?\d", needs_context=True),
    Recognizer("IN_VOTER", presidio.InVoterRecognizer, r"[A-Za-z]{3}\d{7}", context=("voter", "epic", "elector")),
    Recognizer("IT_DRIVER_LICENSE", presidio.ItDriverLicenseRecognizer, _L_D, needs_context=True),
    Recognizer("IT_FISCAL_CODE", presidio.ItFiscalCodeRecognizer, r"[A-Za-z]{6}[0-9LMNP-Vl-v]"),
    Recognizer("IT_IDENTITY_CARD", presidio.ItIdentityCardRecognizer, r"[A-Za-z]{2} ?\d|\d{5}", needs_context=True),
    Recognizer("IT_PASSPORT", presidio.ItPassportRecognizer, r"[A-Za-z]{2}\d{7}", needs_context=True),
    Recognizer("KR_DRIVER_LICENSE", presidio.KrDriverLicenseRecognizer, _N7, needs_context=True),
    Recognizer("KR_FRN", presidio.KrFrnRecognizer, r"\d{6}-?[5-8]\d{6}", needs_context=True),
    Recognizer("KR_PASSPORT", presidio.KrPassportRecognizer, r"[A-Z]\d{3}", needs_context=True),
    Recognizer("KR_RRN", presidio.KrRrnRecognizer, r"\d{6}-?[1-4]\d{6}"),
    Recognizer("LICENSE_PLATE", presidio.DeKfzRecognizer, r"[A-ZÄÖÜ]{1,3}[ -][A-Z]{1,2}[ -]\d", needs_context=True),
    Recognizer(
        "LICENSE_PLATE",
        presidio.UkVehicleRegistrationRecognizer,
        r"[A-Z]{2}\d{2} ?[A-Z]{3}|[A-Z]\d{1,3} ?[A-Z]{3}|[A-Z]{3} ?\d",
        context=("vehicle", "registration", "number plate", "licence plate", "license plate", "reg ", "car ", "plate"),
        needs_context=True,
    ),
    Recognizer("NG_NIN", presidio.NgNinRecognizer, r"\d{11}", context=("nin ", "national id"), needs_context=True),
    Recognizer("PL_PESEL", presidio.PlPeselRecognizer, r"\d{11}", needs_context=True),
    Recognizer("SE_PERSONNUMMER", presidio.SePersonnummerRecognizer, r"\d{6}[-+]?\d{4}", needs_context=True),
    Recognizer("SG_NRIC_FIN", presidio.SgFinRecognizer, r"[A-Za-z]\d{7}[A-Za-z]"),
    Recognizer("TH_TNIN", presidio.ThTninRecognizer, r"\d{13}|\d-\d{4}-", needs_context=True),
    Recognizer("TR_NATIONAL_ID", presidio.TrNationalIdRecognizer, r"\d{11}", needs_context=True),
    Recognizer("UK_DRIVING_LICENCE", presidio.UkDrivingLicenceRecognizer, r"[A-Z9]{5}\d{6}"),
    Recognizer(
        "UK_PASSPORT", presidio.UkPassportRecognizer, r"[A-Z]{2}\d{7}", context=("passport",), needs_context=True
    ),
    Recognizer("US_MBI", presidio.UsMbiRecognizer, r"\d[A-Z][A-Z0-9]\d-?[A-Z]"),
    Recognizer("US_NPI", presidio.UsNpiRecognizer, _N7, context=("npi", "national provider"), needs_context=True),
    Recognizer(
        "ABA_ROUTING_NUMBER",
        presidio.AbaRoutingRecognizer,
        r"\d{4}-?\d{4}-?\d",
        context=("aba", "routing"),
        needs_context=True,
    ),
    Recognizer(
        "ZA_ID_NUMBER",
        presidio.ZaIdNumberRecognizer,
        r"\d{13}",
        context=("id ", "identity", "identification", "id:"),
        needs_context=True,
    ),
)
"""Recognizers of `guards.pii.patterns.PatternScanner`, by kind."""
