"""The language of a text by a light rule: its script, else its commonest words (Latin and Cyrillic)."""

import re

_SAMPLE = 600
_LEAST_WORDS = 2
_SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u4e00-\u9fff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
)
_WORDS: dict[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "en": "the of and to in is you that it he was for on are as with his they at be this have from or "
        "what how can your which will not do",
        "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an "
        "werden aus er hat dass sie nach wird bei wie ich was",
        "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont "
        "avec je vous nous",
        "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le "
        "qué cómo está",
        "it": "di e il la che in un a per è una sono con non si da come del le dei al nel anche più questo "
        "della gli",
        "pt": "de a o que e do da em um para com não uma os no se na por mais as dos como mas ao ele das à "
        "você",
        "nl": "de en van ik te dat die in een hij het niet zijn is was op aan met als voor had er maar om "
        "hem dan je",
        "pl": "w i na nie się z do to że jest o jak a po co za od czy tak przez dla są",
        "sv": "och i att det som en på är av för med till den har de inte om ett han men var jag",
        "tr": "ve bir bu da de için ile çok ne o gibi daha olarak var kadar sonra mi",
        "ru": "и в не на я что он с как это по но они к у ты из мы за вы так же от все",  # noqa: RUF001
        "uk": "і в не на я що він з як це по але та до у ти із ми за ви так від є",  # noqa: RUF001
    }.items()
}
_WORD = re.compile(r"[^\W\d_]+")


def language(text: str) -> str:
    """A code of ISO 639-1, or `unknown`."""
    sample = text[:_SAMPLE]
    if not sample.isascii():
        for code, letters in _SCRIPTS:
            if len(letters.findall(sample)) * 5 > len(sample):
                return code
    words = _WORD.findall(sample.lower())
    best, most = "unknown", _LEAST_WORDS - 1
    for code, common in _WORDS.items():
        count = sum(word in common for word in words)
        if count > most:
            best, most = code, count
    return best
