"""A strict reader of HTML: every element is closed in its order, or it is an error. For the tests of the report."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"br", "img", "input", "link", "meta"}


@dataclass
class Element:
    name: str
    attributes: dict
    children: list = field(default_factory=list)

    def walk(self):
        yield self
        for child in self.children:
            if isinstance(child, Element):
                yield from child.walk()

    def all(self, name=None, **attributes):
        """Elements inside, by name, `class_` (one of its classes) and other attributes."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [one for one in self.walk() if one is not self and name in (None, one.name) and one.has(wanted)]

    def one(self, name=None, **attributes):
        (found,) = self.all(name, **attributes)
        return found

    def has(self, wanted):
        kinds = (self.attributes.get("class") or "").split()
        return all(value in kinds if key == "class" else self.attributes.get(key) == value for key, value in wanted.items())

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Element("document", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {tag} {attrs}"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def tree(text):
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1, f"not closed: {[one.name for one in reader.open[1:]]}"
    return reader.root
