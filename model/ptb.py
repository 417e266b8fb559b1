"""Text -> tokens as the Stanford PTB tokenizer splits it for the COCO evaluation, without Java.

The COCO evaluation (pycocoevalcap, tokenizer/ptbtokenizer.py) runs Stanford CoreNLP 3.4.1's ``PTBTokenizer -preserveLines -lowerCase``
and then drops a list of punctuation tokens. The rules here are that tokenizer's conventions (those of the Penn Treebank, but hyphenated
words, abbreviations, fractions and web names are not split), found by running it. At each position all rules are tried and the longest match
wins, as in the Java lexer. docs/metrics.md says how often the two agree, and where they differ.
"""

import functools
import re
import sys

# Dropped after tokenization: the list in pycocoevalcap's tokenizer/ptbtokenizer.py. Brackets stay, because they arrive in lower case:
# "-lrb-" is not in the list.
PUNCTUATION = frozenset(("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

_SPELLED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "€": "$",
    "₠": "$",
    "¤": "$",
    "\x80": "$",
    "£": "#",
    "¢": "cents",
    "¼": "1/4",
    "½": "1/2",
    "¾": "3/4",
    "⅓": "1/3",
    "⅔": "2/3",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
}
# Each is a token that is dropped: typographic quotes, dashes and ellipses become ASCII punctuation.
_DROPPED_MARKS = '"“”«»‹›‘’‛\x91\x92\x93\x94\x96\x97–—―…'
_MARKS = r"\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u064b-\u065e\u0900-\u0903\u093c-\u094d\u0e31-\u0e3a\u0e47-\u0e4e"
_DROPPED = frozenset(_DROPPED_MARKS + "-.")
# Symbols that the Java tokenizer knows. Other characters that are not letters are treated as a space.
_SYMBOLS = (
    r"!#$%&*+,./:;<=>?@\\^_`|~\-¡-¿×÷\u037e\u0387\u0589\u05be\u060c\u061b\u061f\u0964\u0965\u0e3f\u2016-\u2023\u2030-\u2038\u203b\u203e-\u2042"
    r"\u2044\u2070\u2074-\u208e\u20a4\u2100-\u214f\u2155-\u215e\u2190-\u244a\u2460-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
)

# Digits in Python, symbols here
_NO_LETTERS = r"\xb2\xb3\xb9\xbc-\xbe\u2070-\u2089\u2150-\u2189\u2460-\u24ff\u2776-\u2793"
# No character matches on both sides of a bar: otherwise backtracking over a long word would take exponential time
_MARK = rf"(?!\w)[{_MARKS}]"
_LETTER = rf"(?:[^\W\d_{_NO_LETTERS}]|{_MARK})"
_ALNUM = rf"(?:[^\W_{_NO_LETTERS}]|{_MARK})"
_SPACE = r"[ \t\u00a0\u2000-\u200a\u3000]"
_APOS = r"['\x92’]"
_ANY_APOS = r"['`\x91\x92‘’‛]"
_HYPHEN = r"[-_\u058a\u2010\u2011]"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_NO_WORD = r"[^A-Za-z]"
_PREFIXED = rf"(?:[dDoOlL]{_ANY_APOS}{_ALNUM})?{_ALNUM}+"
_NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])*"
_IN_ADDRESS = r"""[^ \t\n\r\f"<>|()\u00a0]"""
_ENDS_ADDRESS = r"""[^ \t\n\r\f"<>|.!?(){},\-\u00a0]"""
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"

# Abbreviations keep their full stop. Those that are also English words must be capitalized.
_ANY_CASE = (
    r"jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|"
    r"mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo|inc|cos?|corp|pp?t[ye]s?|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys|invt|elec|"
    r"natl|m[ft]g|dept|tel|est|ext|sq|jr|sr|bros|(?:ed|ph)\.d|blvd|rd|esq|etc|al|seq|bldg|mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|"
    r"gen|messrs|govs?|adm|rev|maj|sgt|cpl|pvt|mt|ft|capt|ste?|ave|pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mme|mlle|vs|alex|wm|jos|cie|"
    r"cf|a\.k\.a|treas"
)
_CAPITALISED = "az|ark|del|ill|la|mass|miss|ore|pa|tex|wash"
# Words that begin a sentence if they are capitalized and follow an acronym.
_FIRST_WORDS = (
    r"A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr\.|Ms\.|Now|Once|One|Other|Our|She|"
    r"Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|When|While|What|Yet|You"
)
_BEFORE_NUMBERS = "ca|figs?|prop|nos?|art|bldg|pp|op"


@functools.cache
def _abbreviation() -> re.Pattern[str]:
    """An abbreviation or an acronym with its full stop as group 1."""
    return re.compile(rf"((?:(?i:{_ANY_CASE})|(?=[A-Z])(?i:{_CAPITALISED})|{_ACRONYM})\.)")


@functools.cache
def _rules() -> tuple[re.Pattern[str], ...]:
    """Each rule matches a token as its group. What it matches after the group must follow the token, and counts towards the match's length."""
    sources = (
        # Assimilations: can|not, gon|na, 't|is, more|'n
        rf"((?i:can))(?i:not)|((?i:gon|wan))(?i:na)|((?i:got))(?i:ta)|((?i:lem|gim))(?i:me)|('[tT])(?i:is|was)|([mM]ore){_APOS}n",
        # Verbs and possessives: isn|'t, dog|'s
        rf"({_WORD}|{_NUMBER}){_APOS}(?i:[msd]|re|ve|ll)(?:{_NO_WORD}|\Z)",
        rf"({_LETTER}*?(?![nN]){_LETTER})(?i:n){_ANY_APOS}(?i:t)",
        rf"({_APOS}(?i:[msd]|re|ve|ll))(?:{_NO_WORD}|\Z)",
        rf"((?i:n){_ANY_APOS}(?i:t))(?:{_NO_WORD}|\Z)",
        # Words with an apostrophe inside
        rf"({_APOS}[nN]{_APOS}?|[lLdDjJ]{_APOS}|(?i:dunkin|somethin|ol){_APOS}(?!{_LETTER})|{_APOS}(?i:em|till?|cause)|{_APOS}[2-9]0s)",
        rf"([A-HJ-XZn]{_ANY_APOS}{_LETTER}{{2,}}|{_LETTER}+[aeiouyAEIOUY]{_APOS}[aeiouA-Z]{_LETTER}*)",
        rf"((?i:cont{_APOS}d)\.?|(?i:nor{_APOS}easter|c{_APOS}mon|[en]{_APOS}er|s{_APOS}mores|ev{_APOS}ry|li{_APOS}l|nat{_APOS}l|o{_APOS}o))",
        rf"([yY]{_APOS}){_LETTER}",
        rf"({_APOS}\d\d)(?:{_SPACE}|\Z)",
        # Quotation marks before words; these matches are longer than those of words with a leading apostrophe
        rf"([`'‘]){_LETTER}[^ \t\n\r\u00a0]",
        rf"({_APOS}(?i:[msd]|re|ve|ll))",
        # Web names; the bounds keep the search for their ends from running through a long text
        rf"(https?://{_IN_ADDRESS}+{_ENDS_ADDRESS})",
        rf"""((?:www\.(?:[^ \t\n\r\f"<>|.!?(){{}},]+\.){{1,20}}[a-zA-Z]{{2,4}}|"""
        rf"""(?:[^ \t\n\r\f"`'<>|.!?(){{}},\-_$]{{1,99}}\.){{1,20}}(?:com|net|org|edu))"""
        rf"(?:/{_IN_ADDRESS}+{_ENDS_ADDRESS})?)",
        r"""([a-zA-Z0-9][^ \t\n\r\f"<>|()\u00a0]{0,99}@(?:[^ \t\n\r\f"<>|().\u00a0]+\.)*[^ \t\n\r\f"<>|().\u00a0]+)""",
        rf"(@(?:{_LETTER}|_)(?:{_ALNUM}|_)*|#{_LETTER}+)",
        # Numbers: 3 1/2, 555-1212, 10,000, -5
        r"((?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4})",
        r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
        r"((?:\(\d{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0])\d{3,4}[- \u00a0]?\d{3,5})",
        r"((?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})",
        rf"([-+]?{_NUMBER})",
        r"([A-Z]*\$)",
        # Abbreviations; an initial before a new sentence is a word
        rf"([A-Za-z])\.(?:{_SPACE}+(?:{_FIRST_WORDS}){_SPACE}|\Z)",
        _abbreviation().pattern,
        rf"((?i:{_BEFORE_NUMBERS})\.){_SPACE}?\d",
        # Words, with their full stop where the sentence continues
        rf"({_WORD}\.)[,;:\u3001]",
        rf"({_WORD})",
        rf"({_PREFIXED}(?:{_HYPHEN}{_PREFIXED})*)",
        r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)",
        rf"({_SLASHED}(?:\\?/{_SLASHED}){{1,2}})",
        rf"([A-Za-z0-9][A-Za-z0-9.,]{{0,99}}(?:-(?:[A-Za-z0-9]+|{_ACRONYM}\.))+)",
        r"([cC]\+\+|[cCfF]#)",
        # Emoticons
        rf"""([<>]?[:;=][-o*']?[()DPdpO\\{{@|\[\]])(?!{_ALNUM})""",
        r"([-^x=~<>'][_.][-^x=~<>'](?!\w)|\([-^x=~<>'][_.]?[-^x=~<>']\))",
        # Tags, and repeated signs
        r"(</?[A-Za-z][^<>\n]*>)",
        r"(&amp;|&lt;|&gt;)",
        r"(--+|[!?]{2,}|\*+|#+|@+|_+|\.\.\.+|<<|>>|``|'')",
        rf"""([(){{}}\[\]{_SYMBOLS}'{_DROPPED_MARKS}€₠¤\x80£¢⅓⅔])""",
    )
    return tuple(map(re.compile, sources))


# Most words of most captions: ASCII letters, possibly with hyphens between them, up to a space or a comma.
_PLAIN = re.compile(r"([A-Za-z]+(?:-[A-Za-z]+)*)(?:,?(?= )|(?=\Z)|\.\Z)")
_UNUSUAL_PLAIN = frozenset(("cannot", "gonna", "gotta", "lemme", "gimme", "wanna"))
_GAP = re.compile(rf"[\s\u200b\ufeff]+|{_SPACE}+")
_AUXILIARY = re.compile(r"(?i:[\x92’](?:[msd]|re|ve|ll)|n[\x92’]t)")


def ptb_tokens(text: str) -> list[str]:
    r"""The tokens of a text in lower case, without punctuation, as the COCO evaluation scores them.

    A token may contain a no-break space: a number and its fraction are one token, as in the Java tokenizer.

    >>> ptb_tokens('A man\'s dog, asleep... It can\'t see "the 3-foot wall" in St. Louis.')
    ['a', 'man', "'s", 'dog', 'asleep', 'it', 'ca', "n't", 'see', 'the', '3-foot', 'wall', 'in', 'st.', 'louis']
    """
    text = text.replace("\xad", "").rstrip()
    found: list[str] = []
    place = 0
    while place < len(text):
        plain = _PLAIN.match(text, place)
        if plain is not None and _is_plain(plain, text):
            found.append(sys.intern(plain[1].lower()))  # one string for all occurrences of "a": a split has millions of tokens
            place = plain.end()
            continue
        gap = _GAP.match(text, place)
        if gap is not None:
            place = gap.end()
            continue
        token = _longest(text, place)
        place += max(len(token), 1)
        spelled = _spelled(token)
        if spelled and spelled not in PUNCTUATION:
            found.append(spelled)
    return found


def _is_plain(plain: re.Match[str], text: str) -> bool:
    """Whether a matched word is a token by itself. A full stop after it might belong to an abbreviation."""
    if plain[1].lower() in _UNUSUAL_PLAIN:
        return False
    return text[plain.end() - 1] != "." or _abbreviation().match(text, plain.start()) is None


def _longest(text: str, place: int) -> str:
    best, longest = "", 0
    for rule in _rules():
        match = rule.match(text, place)
        if match is not None and match.end() - place > longest:
            longest = match.end() - place
            best = match[match.lastindex or 0]
    return best


def _spelled(token: str) -> str:
    """A token as the Java tokenizer spells it; empty for the quotes and dashes that it turns into punctuation."""
    if token in _SPELLED:
        return _SPELLED[token]
    if set(token) <= _DROPPED:
        return ""
    if _AUXILIARY.fullmatch(token):
        token = token.replace("’", "'").replace("\x92", "'")
    for sign in "()&":
        if sign in token:
            token = token.replace("&amp;", "&").replace(sign, _SPELLED.get(sign, sign))
    return token.replace(" ", "\xa0").lower()
