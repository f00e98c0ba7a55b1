"""The admin API describes itself, and what describes it is OpenAPI by the judgement of a tool that is not ours."""

import json
import urllib.error
import urllib.request

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator


def fetch(url, headers=None):
    """Status and JSON, of a failure too."""
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as failure:
        with failure:
            return failure.code, json.load(failure)


@pytest.fixture(scope="module")
def admin(processes):
    return processes[1].admin


@pytest.fixture(scope="module")
def document(admin):
    status, document = fetch(f"{admin}/admin/v1/openapi.json")
    assert status == 200
    return document


def test_the_document_is_openapi(document):
    assert document["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_a_failure_looks_as_described(admin, document):
    schema = {"$ref": "#/components/schemas/Error", "components": document["components"]}
    for headers in ({}, {"authorization": "Bearer nobody"}):
        status, body = fetch(f"{admin}/admin/v1/keys", headers)
        assert status == 401
        assert [error.message for error in OAS31Validator(schema).iter_errors(body)] == []
