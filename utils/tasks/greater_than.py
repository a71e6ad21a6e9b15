"""Greater-than: a span of years must end after it began (Hanna et al. 2023, arXiv 2305.00586)."""

TEMPLATE = "The {noun} lasted from the year {year} to the year {century}"

FIRST_YEAR, LAST_YEAR = 1100, 1799  # inclusive; years outside are rarely two tokens

# Hanna et al. 2023's nouns of things that last, less the eight that Pythia's tokenizer splits, plus "war".
NOUNS: tuple[str, ...] = (
    *("war", "accord", "affair", "agreement", "appraisal", "assaults", "assessment", "attack", "attempts", "campaign"),
    *("case", "challenge", "chaos", "clash", "collaboration", "coma", "competition", "confrontation", "consequence"),
    *("conspiracy", "construction", "consultation", "contact", "contract", "convention", "cooperation", "custody"),
    *("deal", "decline", "decrease", "demonstrations", "development", "disagreement", "disorder", "dispute"),
    *("domination", "dynasty", "effect", "effort", "employment", "endeavor", "engagement", "epidemic", "evaluation"),
    *("exchange", "existence", "expansion", "expedition", "experiments", "fall", "fame", "flights", "friendship"),
    *("growth", "hardship", "hostility", "illness", "impact", "imprisonment", "improvement", "incarceration"),
    *("increase", "invasion", "investigation", "journey", "kingdom", "marriage", "negotiation", "obstruction"),
    *("operation", "order", "outbreak", "outcome", "overhaul", "plague", "plan", "practice", "process", "program"),
    *("progress", "project", "pursuit", "quest", "raids", "reforms", "reign", "relationship", "retaliation", "riot"),
    *("rise", "rivalry", "romance", "rule", "sanctions", "shift", "siege", "stature", "stint", "strikes", "study"),
    *("test", "testing", "tests", "therapy", "tour", "tradition", "treaty", "trial", "trip", "unemployment"),
    *("voyage", "warfare", "work"),
)
