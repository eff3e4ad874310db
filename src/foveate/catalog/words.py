"""Words as a search sees them: one spelling for British and American, and no endings."""

import re
import unicodedata

_WORD = re.compile(r"\d{4}\.\d{4,5}|[a-z0-9]+")

_EMPTY = {"a", "an", "and", "by", "for", "in", "of", "on", "or", "the", "to", "with"}

_SPELLINGS = tuple(
    (re.compile(pattern), american)
    for pattern, american in (
        (r"(?<=[a-z]{3})is(?=(e|ed|es|er|ers|ing|able|ations?)$)", "iz"),
        (r"(?<=[a-z]{2})our", "or"),
        (r"lys(?=(e|ed|es|er|ers|ing)$)", "lyz"),
        (r"(?<=[bt])re(?=s?$)", "er"),
        (r"ence(?=s?$)", "ense"),
        (r"ogue(?=s?$)", "og"),
        (r"^grey", "gray"),
        (r"^artefact", "artifact"),
    )
)

_ENDING = re.compile(
    r"(?<=iz)(ations?|able|e[drs]?|ers|ing)$"
    r"|(?<=\w{4})(ations?|ings?|ity|ed|es|e)$"
    r"|(?<=\w{3})(?<![isu])s$"
)


def words(text: str) -> list[str]:
    """A text's words in order: lower-case, American, without accents; empty ones left out."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return [_american(word) for word in _WORD.findall(plain) if word not in _EMPTY]


def stem(word: str) -> str:
    """A word of `words` without its ending: quantization, quantized and quantizer share one."""
    bare = _ENDING.sub("", word, count=1)
    return bare[:-1] if len(bare) > 3 and bare[-1] == bare[-2] else bare


def _american(word: str) -> str:
    for pattern, american in _SPELLINGS:
        word = pattern.sub(american, word)
    return word
