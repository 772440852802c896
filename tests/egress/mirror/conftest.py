"""Tests in this folder have a site on 127.0.0.1, which ends with the test."""

from tests.egress.upstream import upstream as upstream
