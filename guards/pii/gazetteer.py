"""First names and surnames (US census, package `names`), and which of them are words, places or months as well."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

__all__ = ["COMMON_WORDS", "NAMES_OF_PLACES", "NOT_A_NAME_ALONE", "first_names", "surnames"]

MIN_SURNAME_SHARE: Final = 0.0005  # per cent of the population; rarer ones are the half that collides with words


def _column(name: str) -> dict[str, float]:
    lines = (files("names") / name).read_text(encoding="utf-8").splitlines()
    return {word.lower(): float(share) for word, share in (line.split()[:2] for line in lines if line.strip())}


@cache
def first_names() -> frozenset[str]:
    """Some 5,000 first names in lower case, without those that are words, places or months at least as often."""
    found = _column("dist.male.first").keys() | _column("dist.female.first").keys()
    return frozenset(found) - NOT_A_NAME_ALONE - NAMES_OF_PLACES - COMMON_WORDS


@cache
def surnames() -> frozenset[str]:
    """Surnames in lower case; words among them are left in, since they count beside a first name only."""
    return frozenset(name for name, share in _column("dist.all.last").items() if share >= MIN_SURNAME_SHARE)


NAMES_OF_PLACES: Final = frozenset(
    """
    africa alabama alaska america asia atlanta augusta austin avalon bali berlin boston brooklyn carolina charleston
    chelsea cheyenne china cleveland colombia cuba cyprus dakota dallas delhi denver devon dover egypt england
    florence florida france geneva genoa georgia germany ghana holland houston india indiana iran iraq ireland
    israel italia italy jamaica japan jordan kansas kent kenya korea london lourdes lyon macon madison malta
    marseille maryland memphis mexico miami milan montana nevada odessa orlando oxford panama paris phoenix porsche
    rome roma russia salem santiago savannah scotland sicily sparta sydney syria tennessee texas troy tulsa valencia
    venezuela venice verona victoria vienna virginia wales washington york los las san santa saint st stanford
    princeton cambridge rico orleans laurel windsor clinton
    """.split()  # noqa: SIM905 - a list of words is a page
)

NOT_A_NAME_ALONE: Final = frozenset(
    """
    ai al alexa alpha america amber an angel angle apple april aria art ash august autumn ava ave avery baby bell
    berry bill bird birdie blossom blue blythe bond brain brandy breeze bright brook buck bud buddy bunny buster
    candy cannon carol carry cash chance charity chase cherry chip chris christian cliff clay cloud coral cotton
    creed crystal daisy dale dawn dean delta desire destiny diamond dick dolly don dot dove dusty earl easter eden
    el ember emerald era essence eve fairy faith faye fern forest frank frost gale gay gem gene genesis german
    ginger glen glory golden grace grant gray green guy ha hang happy harmony hazel haven heath heaven herb holiday
    holly hollis honey hope hunter in irish iris ivory ivy jade jan january jasmine jay jean jelly jersey jesus jet
    jewel job jolly joy july june justice kelvin king lady lance lane lark lashes lavender lean legend marvel han
    alfredo levi liberty lily lisbon loan long lord lotus love lovely loyal luck lucky major man manual many march
    marine mark marry mars mason master may mayor maxwell means mercedes mercy merit merry miles mina miss misty
    modesty money my nature nova numbers oak ocean ok olive opal page pansy paris parker patience pearl pence penny
    pepper pilar pink piper polo poppy porter prince princess queen rain rainbow ray rea red reed regency reign rich
    river rob robin rocky rod rose rosemary royal ruby ruth saber sage sandy scarlet scout see senior september
    serenity shade shanty shawl shelly silver sky sol son soon song spring star stella sterling stone storm sue
    summer sun sunny sunshine swan sweet tammy tasha temple teal tempest tiny thanks thing topaz trinity tuesday ty
    unique usual van velvet verse victor viola violet vista wade ward waters webster west will willow winter wonder
    wren young zen zion so else de del la las los un una esta este como mas dado sin por para con mi su temp sang
    shin shu tien tu ute vi von wan wen yi yan yen yong yu le li lin ling min ma mae me no of on or pa pei qi ria sa
    shae shea sha she si sid
    """.split()  # noqa: SIM905
)
"""First names that, standing alone, are a word, a thing, a title or a month at least as often."""

COMMON_WORDS: Final = frozenset(
    """
    a able about above absolutely according account accounts across act action actually add address admin after
    afternoon again against age ago agree ah aha all allow almost alright also although altogether always am amazing
    among amount an and annual another answer any anybody anyone anything anyway anywhere app apparently apart apply
    approximately april are aren area around article as ask asking assist assistant assume assuming at august aunt
    auntie author available avoid aw away awesome awful baby back bad balance bank based be because become been
    before begin being believe besides best better between beyond big bit black body book both bot bottom boy bring
    brother build business but buy by bye call called calling came can cannot card care case categories cause
    certain certainly chapter chat cheap check child children choose christian christmas city class clean clearly
    click close code cold come coming common company compare complete completely computer congratulations consider
    contact content contents continue cool cost could country couldn couple course create created creating credit
    currently customer cut dad daddy dark data date day days de dear december decide deep definitely delete
    department depending depends describe design despite detailed details did didn different difficult direct
    discuss do doctor document does doesn dog doing don done dont double down draw dream drink drive drop due during
    each early earth easily east easy eat edit education effective eh eight either eleven else email end english
    enjoy enough enter entire equipment error especially essentially estimated etc even evening eventually ever
    every everybody everyone everything everywhere exactly example except excellent excuse experience explain extra
    eyes face fact fair fairly fall family far fast father feature features february feel few field figure file fill
    final finally find fine finish first five fix follow following food for force forget form former fortunately
    forward found four free freedom french friday friend from front fuck full fun function further furthermore
    future game general generally generate german get getting girl give given giving glad go god goes going good
    goodbye gosh got government grandma grandpa great greetings group guess guide guy guys had hadn haha half hand
    hands hang happy hard has hasn hate have haven having he head health hear heat heck hell hello help helpful
    hence her here hers herself hey hi high him himself hint his history hit hm hmm hmmm hold holiday holy home
    honestly hopefully hot hour hours house how however hows huge huh human humans hundred hurry husband i idea
    ideally if im image imagine immediately important impressive in include includes including income increase
    increasingly indeed information initially input inside instead instructions interesting internet into
    introduction invest invite is island isn issue it its itself january job join july june jump just keep key kid
    kids kind know label ladies language large last late lately later laugh law lead learn least leave left less let
    lets letter life light like likely limit line link list listen literally little live living local location long
    look looking looks lord lot love low lower lunch machine mail main mainly make making male man manager many
    march mate matter may maybe me mean means meanwhile measure meat medical medium meet meeting men mention merry
    message method middle might mine minute minutes mom moment monday money month months more moreover morning most
    mostly mother move movie mr mrs ms much mum mummy music must my myself name names national natural near nearly
    necessary need neither never nevertheless new news next nice night nine no nobody non none nonetheless nope nor
    normal normally north not note nothing notice november now number numbers object obviously occasionally october
    of off offer office official often oh ok okay old on once one ones online only oops open option options or
    orange order originally other others otherwise ouch our ours ourselves out outside over overall own page paint
    paper parent parents part particularly party password past pay people perfect perhaps period person personal
    personally phone photo pick picture piece place plan play please plenty plus point police poor popular possible
    possibly post potential practice prepare present president press pretend pretty previous previously price prices
    probably problem process product professional program project provide public pull purchase purpose push put
    question questions quick quickly quite race radio rain ran rate rather re read reading ready real really reason
    recent recently recipe record red regarding regardless relax religion remember remind remove repeat reply report
    research respond rest result results return review rewrite right road room rule rules run sad safe safety said
    sale same sample saturday save say saying says school science search second secondly section see seems select
    self sell send sentence september serious seriously service set seven several sex shall she ship short should
    shouldn show shut side signs similar simple simply since single sir sister sit six size sleep small smart so
    social software some somebody somehow someone something sometimes somewhat somewhere son soon sorry sort sound
    sounds soup source south spanish speak speaking special specific specifically spend spring stand start state
    states stay step steps still stop store story straight street strong student studies study stuff stupid subject
    such sugar suggest summary summer sun sunday super support supposedly sure surely system table take talk tax
    teach team tell ten term terms test text than thank thanks that thats the theft their theirs them themselves
    then there therefore these they thing things think third this those though thought thousand three through
    throughout thursday thus till time tip tips title to today together tomorrow tonight too took top total totally
    toward town traditional translate travel treat tree trick true truly truth try trying tuesday turn tv twelve
    twenty two type types typically uh uhh um umm under understand unfortunately united university unless unlike
    until up update upon us usa use used useful user using usually various very via victim view violence visit wait
    walk wanna want war was wasn watch water way we wear weather wednesday week weekend weight welcome well went
    were weren west whale what whatever whats when whenever where whereas wherever whether which while white who
    whoever whole whom whose why wife will win wine winter wish with within without woman women won wonder wonderful
    word words work working world worry worse worst would wouldn wow write writing wrong ya yay yea yeah year years
    yep yes yesterday yet yikes you young your youre yours yourself youth yup zero

    correo hospital servicio email telefono calle localidad provincia domicilio datos apt chrome edge firefox opera
    safari suite avenue boulevard tel fax iban ssn zip cvv pin dob

    african african-american alien american americans arab arabic asian asians australian black brazilian british
    buddhist canadian catholic chinese christians democrat democrats dutch english european europeans french germans
    greek gay hindu hispanic indian irish islam islamic israeli italian japanese jewish jews jew korean latin latino
    mexican mexicans muslim muslims native nazi nazis polish republican republicans roman russian spanish turkish
    """.split()  # noqa: SIM905
)
"""Words that are no name though they stand with a capital letter: most of what opens a sentence, languages, peoples."""
