"""Column files, MUGE's folders, COCO's file and class folders at URLs: as on the disk."""

from pathlib import Path
from typing import Any

import pytest
import test_arrow_source as columns
import test_folder_sources as folders
import test_url_sources as urls

bucket, temporary = urls.bucket, urls.temporary


class TestParquet(urls.AtUrl, columns.TestParquetOfBytes):
    pass


class TestParquetFolderOfASplit(urls.AtUrl, columns.TestParquetFolderOfASplit):
    pass


class TestParquetOfPaths(urls.AtUrl, columns.TestParquetOfPaths):
    pass


class TestFeather(urls.AtUrl, columns.TestFeather):
    pass


class TestSavedDataset(urls.AtUrl, columns.TestSavedDataset):
    pass


class TestSavedSplits(urls.AtUrl, columns.TestSavedSplits):
    pass


class TestMuge(urls.AtUrl, folders.TestMuge):
    pass


class TestMugeOfASplit(urls.AtUrl, folders.TestMugeOfASplit):
    pass


class TestCoco(urls.AtUrl, folders.TestCoco):
    pass


class TestClassFolders(urls.AtUrl, folders.TestClassFolders):
    pass


class TestClassFoldersOfASplit(urls.AtUrl, folders.TestClassFoldersOfASplit):
    pass
