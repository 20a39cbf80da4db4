"""The nodes' texts in the languages of ComfyUI's page: all there, of the English that the schemas have now."""

import asyncio
import re

import pytest
from coherence.locales.texts import LANGUAGES, english, flat, missing, read, sources
from coherence.nodes import CoherenceExtension

every_language = pytest.mark.parametrize("language", LANGUAGES)


def test_the_english_is_that_of_the_schemas():
    schemas = [node.GET_SCHEMA() for node in asyncio.run(CoherenceExtension().get_node_list())]
    assert read("en") == flat(english(schemas)), "run `python locales/texts.py english --comfyui DIR`"


@every_language
def test_no_text_is_missing_or_of_an_older_english(language):
    assert missing(language) == {}


@every_language
def test_no_text_is_left_over(language):
    assert read(language).keys() == sources(language).keys() == read("en").keys()


@every_language
def test_a_translation_has_the_numbers_of_its_english(language):
    def numbers(text: str) -> set[str]:
        return set(re.findall(r"\d+(?:\.\d+)?", text))

    translated = read(language)
    assert not {
        key: (text, translated[key]) for key, text in read("en").items() if numbers(text) - numbers(translated[key])
    }


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_the_page_takes_no_text_for_a_pattern(language):
    assert not {key: text for key, text in read(language).items() if set(text) & set("{}|@")}


def test_the_server_hands_them_out(server):
    served = server.get("/i18n")
    for language in LANGUAGES:
        name = served[language]["nodeDefs"]["DependencyNoise"]["display_name"]
        assert name == read(language)["nodeDefs/DependencyNoise/display_name"]
