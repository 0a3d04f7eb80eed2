# SPDX-License-Identifier: Apache-2.0
"""Weights in files: pydet's own, and those of other projects, recognised by their content."""

from pydet.weights._convert import convert as convert
from pydet.weights._file import load as load
from pydet.weights._file import read_metadata as read_metadata
from pydet.weights._file import save as save
from pydet.weights._formats import projects as projects
