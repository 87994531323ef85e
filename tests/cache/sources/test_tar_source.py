"""Tars keep the contract of sources: with captions in JSON, in text members, and with img2dataset's tables."""

from support import source_makers as makers


class TestFolderOfTars(makers.FolderOfTars):
    pass


class TestOneTarWithTexts(makers.OneTarWithTexts):
    pass


class TestImg2dataset(makers.Img2dataset):
    pass
