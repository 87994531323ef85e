"""Tables keep the contract of sources: JSON lines, and CSV with a line for each caption."""

from support import source_makers as makers


class TestJsonLines(makers.JsonLines):
    pass


class TestCsv(makers.Csv):
    pass
