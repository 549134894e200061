"""Small official files of every real benchmark, in the layout that its publisher documents, and the rows they are."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Case(NamedTuple):
    write: Callable[[Path], None]
    """Writes the official files into a folder."""
    rows: list[Row]
    """What they are, in order, without ids."""
    counts: dict[str, int | None]


def put(folder: Path, path: str, content: Any) -> None:
    """A file: JSON unless it is text or bytes."""
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def put_images(folder: Path, *paths: str) -> None:
    for path in paths:
        put(folder, path, b"an image")


def put_zip(folder: Path, path: str, files: dict[str, Any]) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, (str, bytes)) else json.dumps(content))
    put(folder, path, packed.getvalue())


def put_tar(folder: Path, path: str, files: dict[str, bytes]) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    put(folder, path, packed.getvalue())


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# ---- VQAv2: unpacked, in the folder itself; the images in a sub-folder of COCO's

TEN = ["down", "down", "at table", "skateboard", "down", "table", "down", "down", "down", "down"]


def vqav2(folder: Path) -> None:
    head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    put(folder, "v2_OpenEnded_mscoco_val2014_questions.json", head | {"task_type": "Open-Ended", "questions": [
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
        {"image_id": 42, "question": "Is it “new”?", "question_id": 42001},
    ]})  # fmt: skip
    put(folder, "v2_mscoco_val2014_annotations.json", head | {"annotations": [
        annotation(42, 42001, "is it", "yes/no", ["yes"] * 9 + ["no"]),
        annotation(262148, 262148000, "none of the above", "other", TEN),
    ]})  # fmt: skip
    put_images(folder, "coco/val2014/COCO_val2014_000000262148.jpg", "coco/val2014/COCO_val2014_000000000042.jpg")


def annotation(image: int, question: int, kind: str, answer: str, answers: list[str]) -> Row:
    told = [
        {"answer": text, "answer_confidence": "maybe" if number == 3 else "yes", "answer_id": number}
        for number, text in enumerate(answers, start=1)
    ]
    return {
        "question_type": kind, "multiple_choice_answer": answers[0], "answers": told, "image_id": image,
        "answer_type": answer, "question_id": question,
    }  # fmt: skip


VQAV2 = Case(
    vqav2,
    [
        {
            "image": "val2014/COCO_val2014_000000000042.jpg",
            "question": "Is it “new”?",
            "answers": ["yes"] * 9 + ["no"],
            "tags": {"answer_type": "yes/no", "question_type": "is it"},
            "source_id": "42001",
        },
        {
            "image": "val2014/COCO_val2014_000000262148.jpg",
            "question": "Where is he looking?",
            "answers": TEN,
            "tags": {"answer_type": "other", "question_type": "none of the above"},
            "source_id": "262148000",
        },
    ],
    {"all": 2},
)

# ---- GQA: still packed; the archive has the other splits too, and macOS' shadows


def gqa(folder: Path) -> None:
    questions = {
        "201307251": {
            "semantic": [{"operation": "select", "dependencies": [], "argument": "hair (1)"}], "entailed": [],
            "equivalent": ["201307251"], "question": "Is the hair dark or blond?", "imageId": "n161313",
            "isBalanced": True, "groups": {"global": None, "local": "10q-hair"}, "answer": "dark",
            "semanticStr": "select: hair (1)", "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
            "types": {"detailed": "chooseAttr", "semantic": "attr", "structural": "choose"},
            "fullAnswer": "The hair is dark.",
        },
        "0": {"question": "Is it red?", "imageId": 7, "answer": "no", "fullAnswer": "No.", "types": {}},
    }  # fmt: skip
    put_zip(folder, "gqa/questions1.2.zip", {
        "train_balanced_questions.json": {}, "testdev_balanced_questions.json": questions,
        "__MACOSX/._testdev_balanced_questions.json": b"\0\5\26\7",
    })  # fmt: skip
    put_zip(folder, "gqa/images.zip", {"images/n161313.jpg": b"an image", "images/7.jpg": b"an image"})


GQA = Case(
    gqa,
    [
        {
            "image": "images/n161313.jpg",
            "question": "Is the hair dark or blond?",
            "answers": ["dark"],
            "tags": {"structural": "choose", "semantic": "attr"},
            "source_id": "201307251",
        },
        {"image": "images/7.jpg", "question": "Is it red?", "answers": ["no"], "tags": {}, "source_id": "0"},
    ],
    {"all": 2},
)

# ---- VizWiz: the annotations where its archive puts them, a folder deeper


def vizwiz(folder: Path) -> None:
    def said(*answers: str) -> list[Row]:
        return [{"answer_confidence": "yes" if n else "maybe", "answer": text} for n, text in enumerate(answers)]

    put(folder, "data/Annotations/val.json", [
        {"image": "VizWiz_val_00000000.jpg", "question": "What does this say?", "answer_type": "other",
         "answerable": 1, "answers": said(*["night time"] * 6, "nighttime", "medicine", "unanswerable", "night time")},
        {"answers": said(*["unanswerable"] * 10), "image": "VizWiz_val_00000001.jpg", "answerable": 0,
         "answer_type": "unanswerable", "question": "Can you tell me?"},
    ])  # fmt: skip
    put(folder, "data/Annotations/train.json", [])
    put_images(folder, "data/val/VizWiz_val_00000000.jpg", "data/val/VizWiz_val_00000001.jpg")


VIZWIZ = Case(
    vizwiz,
    [
        {
            "image": "images/VizWiz_val_00000000.jpg",
            "question": "What does this say?",
            "answers": [*["night time"] * 6, "nighttime", "medicine", "unanswerable", "night time"],
            "tags": {"answerable": 1, "answer_type": "other"},
            "source_id": "VizWiz_val_00000000.jpg",
        },
        {
            "image": "images/VizWiz_val_00000001.jpg",
            "question": "Can you tell me?",
            "answers": ["unanswerable"] * 10,
            "tags": {"answerable": 0, "answer_type": "unanswerable"},
            "source_id": "VizWiz_val_00000001.jpg",
        },
    ],
    {"all": 2, "answerable=1": 1, "answer_type=unanswerable": 1, "answerable=0": 1, "answer_type=other": None},
)

# ---- TextVQA: two questions about one image; LLaVA's OCR file, whose question ids are those of images and which writes
# questions in its own way

SHORT = "\nAnswer the question using a single word or phrase."


def textvqa(folder: Path) -> None:
    def asked(identity: int, image: str, question: str, answers: list[str]) -> Row:
        return {
            "question": question, "image_id": image, "image_classes": ["Camera"], "flickr_original_url": "https://x",
            "image_width": 1024, "image_height": 681, "answers": answers, "question_id": identity, "set_name": "val",
            "question_tokens": question.lower().strip("?").split(),
        }  # fmt: skip

    put(folder, "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_name": "textvqa", "data": [
        asked(34602, "003a8ae2ef43b901", "what is the Brand of this camera?", ["dakota"] * 10),
        asked(34603, "003a8ae2ef43b901", "what color?", ["red"] * 10),
        asked(34604, "0054c91397f2fe05", "what is the year?", ["2011"] * 8 + ["unanswerable", "2011"]),
    ]})  # fmt: skip
    put(folder, "llava_textvqa_val_v051_ocr.jsonl", lines(
        {"question_id": "0054c91397f2fe05", "image": "0054c91397f2fe05.jpg", "category": "default",
         "text": f"What is the year?\nReference OCR token: {SHORT}"},
        {"question_id": "003a8ae2ef43b901", "image": "003a8ae2ef43b901.jpg", "category": "default",
         "text": f"What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL, Single-Use{SHORT}"},
        {"question_id": "003a8ae2ef43b901", "image": "003a8ae2ef43b901.jpg", "category": "default",
         "text": "what color?\nReference OCR token: DAKOTA, DIGITAL"},
    ))  # fmt: skip
    put_images(folder, "train_images/003a8ae2ef43b901.jpg", "train_images/0054c91397f2fe05.jpg")


TEXTVQA = Case(
    textvqa,
    [
        {
            "image": "train_images/003a8ae2ef43b901.jpg",
            "question": "What is the brand of this camera?",
            "answers": ["dakota"] * 10,
            "context": "DAKOTA, DIGITAL, Single-Use",
            "source_id": "34602",
        },
        {
            "image": "train_images/003a8ae2ef43b901.jpg",
            "question": "what color?",
            "answers": ["red"] * 10,
            "context": "DAKOTA, DIGITAL",
            "source_id": "34603",
        },
        {
            "image": "train_images/0054c91397f2fe05.jpg",
            "question": "What is the year?",
            "answers": ["2011"] * 8 + ["unanswerable", "2011"],
            "context": "",
            "source_id": "34604",
        },
    ],
    {"all": 3},
)

# ---- RefCOCO: a pickle as Python 2 wrote it; the sets beside each other


def refs(set_name: str, split_by: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        def ref(identity: int, ann: int, split: str, *sentences: str) -> Row:
            said = [
                {"tokens": text.split(), "raw": text, "sent_id": 10 * identity + number, "sent": text}
                for number, text in enumerate(sentences)
            ]
            return {
                "sent_ids": [each["sent_id"] for each in said], "ann_id": ann, "ref_id": identity, "image_id": 581857,
                "file_name": f"COCO_train2014_000000581857_{identity}.jpg", "split": split, "sentences": said,
                "category_id": 1,
            }  # fmt: skip

        content = [
            ref(0, 17, "train", "navy blue shirt"),
            ref(1, 18, "val", "the lady", "lady in café"),
            ref(2, 17, "testA", "him"),
        ]
        put(folder, f"refer/{set_name}/refs({split_by}).p", python2_pickle(content))
        put(folder, f"refer/{set_name}/refs(google).p", b"another split")
        put(folder, f"refer/{set_name}/instances.json", {
            "info": {}, "licenses": [], "categories": [{"supercategory": "person", "id": 1, "name": "person"}],
            "images": [{"license": 1, "file_name": "COCO_train2014_000000581857.jpg", "height": 400, "width": 640,
                        "id": 581857}],
            "annotations": [{"bbox": box, "image_id": 581857, "category_id": 1, "id": ann, "iscrowd": 0, "area": 1.0,
                             "segmentation": [[0, 0, 1, 1, 0, 1]]}
                            for ann, box in ((17, [1.0, 1.0, 1.0, 1.0]), (18, [64.5, 100.0, 128.25, 300.0]))],
        })  # fmt: skip
        other = "refcoco" if set_name != "refcoco" else "refcocog"
        put(folder, f"refer/{other}/instances.json", {})
        put_images(folder, "mscoco/train2014/COCO_train2014_000000581857.jpg")

    return write


def python2_pickle(content: Any) -> bytes:
    """Protocol 0, texts as Python 2's `str`: the opcode S of bytes in quotes."""
    if isinstance(content, list):
        return b"(l" + b"".join(element(each) + b"a" for each in content) + b"."
    raise AssertionError


def element(content: Any) -> bytes:
    if isinstance(content, dict):
        return b"(d" + b"".join(element(key) + element(value) + b"s" for key, value in content.items())
    if isinstance(content, list):
        return b"(l" + b"".join(element(each) + b"a" for each in content)
    if isinstance(content, int):
        return f"I{content}\n".encode()
    return f"S{content.encode()!r}\n".replace("Sb", "S", 1).encode()


SENTENCES = [
    {
        "image": "train2014/COCO_train2014_000000581857.jpg",
        "question": text,
        "answers": [],
        "box": [64.5 / 640, 0.25, 192.75 / 640, 1.0],
        "source_id": f"1-{sent}",
    }
    for text, sent in (("the lady", 10), ("lady in café", 11))
]
REFCOCO = Case(refs("refcoco", "unc"), SENTENCES, {"all": 2})
REFCOCO_PLUS = Case(refs("refcoco+", "unc"), SENTENCES, {"all": 2})
REFCOCOG = Case(refs("refcocog", "umd"), SENTENCES, {"all": 2})

# ---- OCID-Ref: a box is a text; takes at the edges of clutter

TAKES = {"100": 0, "101": 9, "102": 10, "103": 16, "104": 17, "105": 20}
SCENE = "ARID20/floor/top/seq12/rgb/result_2018-08-21-12-13-0{}.png"


def ocidref(folder: Path) -> None:
    put(folder, "val_expressions.json", {
        identity: {
            "seq_id": 1, "scene_id": 2, "take_id": take, "scene_path": SCENE.format(take % 3), "sub_dataset": "ARID20",
            "sequence_path": "ARID20/floor/top/seq12", "instance_id": "apple_1", "scene_instance": 3, "class": "apple",
            "class_instance": "apple_1", "sentence": f"the apple {identity}.", "tokens": ["the", "apple"],
            "bbox": "[160, 120, 320, 480]", "sentence_type": "spatial",
        }
        for identity, take in TAKES.items()
    })  # fmt: skip
    put_tar(folder, "OCID-dataset.tar.gz", {f"OCID-dataset/{SCENE.format(n)}": b"an image" for n in range(3)})


OCIDREF = Case(
    ocidref,
    [
        {
            "image": f"images/{SCENE.format(take % 3)}",
            "question": f"the apple {identity}.",
            "answers": [],
            "box": [0.25, 0.25, 0.5, 1.0],
            "tags": {"clutter": clutter},
            "source_id": identity,
        }
        for (identity, take), clutter in zip(
            TAKES.items(), ["minimal", "minimal", "medium", "medium", "maximal", "maximal"], strict=True
        )
    ],
    {"all": 6, "clutter=medium": 2},
)

# ---- VSR: the same statement twice


def vsr(folder: Path) -> None:
    def statement(label: int) -> Row:
        return {
            "image": "000000017697.jpg", "image_link": "http://images.cocodataset.org/train2017/000000017697.jpg",
            "caption": "The car is behind the suitcase.", "label": label, "relation": "behind", "subj": "car",
            "obj": "suitcase", "annotator_id": 2, "vote_true_validator_id": "[18, 2]", "vote_false_validator_id": "[1]",
        }  # fmt: skip

    put(folder, "splits/zeroshot/test.jsonl", lines(statement(1), statement(0), statement(1)))
    put(folder, "splits/random/test.jsonl", "not this one")
    put_images(folder, "vsr/images/000000017697.jpg")


VSR = Case(
    vsr,
    [
        {
            "image": "images/000000017697.jpg",
            "question": "The car is behind the suitcase.",
            "answers": [answer],
            "tags": {"relation": "behind"},
        }
        for answer in ("True", "False", "True")
    ],
    {"all": 3},
)

# ---- POPE: ids that occur in each split


def pope(folder: Path) -> None:
    for split, label in (("random", "yes"), ("popular", "no"), ("adversarial", "no")):
        row = {
            "question_id": 1, "image": "COCO_val2014_000000016631.jpg", "text": "Is there a person in the image?",
            "label": label,
        }  # fmt: skip
        put(folder, f"pope/coco_pope_{split}.json", lines(row))
    put_images(folder, "val2014/COCO_val2014_000000016631.jpg")


POPE = Case(
    pope,
    [
        {
            "image": "val2014/COCO_val2014_000000016631.jpg",
            "question": "Is there a person in the image?",
            "answers": [answer],
            "tags": {"split": split},
            "source_id": f"{split}-1",
        }
        for split, answer in (("random", "Yes"), ("popular", "No"), ("adversarial", "No"))
    ],
    {"all": 3, "split=random": 1, "split=popular": 1, "split=adversarial": 1},
)

# ---- TallyQA: still packed, beside train.json, whose questions have no `issimple`


def tallyqa(folder: Path) -> None:
    def asked(number: int, image: str, answer: int, source: str, **rest: bool) -> Row:
        return {
            "answer": answer, "data_source": source, "image": image, "image_id": number, "question": "How many?",
            "question_id": 30095774 + number, **rest,
        }  # fmt: skip

    put_zip(folder, "tallyqa.zip", {"train.json": [], "test.json": [
        asked(0, "VG_100K_2/2410408.jpg", 4, "imported_genome", issimple=False),
        asked(1, "VG_100K/9.jpg", 15, "amt", issimple=True),
        asked(2, "VG_100K/9.jpg", 0, "amt", issimple=False),
        asked(3, "VG_100K/9.jpg", 1, "imported_vqa", issimple=True),
    ]})  # fmt: skip
    put_images(folder, "VG_100K/9.jpg", "VG_100K_2/2410408.jpg")


TALLYQA = Case(
    tallyqa,
    [
        {
            "image": image,
            "question": "How many?",
            "answers": [letter],
            "options": [str(count) for count in range(16)],
            "tags": {"kind": kind},
            "source_id": str(30095774 + number),
        }
        for number, (image, letter, kind) in enumerate(
            [
                ("VG_100K_2/2410408.jpg", "E", "complex"),
                ("VG_100K/9.jpg", "P", "simple"),
                ("VG_100K/9.jpg", "A", "complex"),
                ("VG_100K/9.jpg", "B", "simple"),
            ]
        )
    ],
    {"all": 4, "kind=simple": 2, "kind=complex": 2},
)

# ---- AI2D: one archive for questions and images; the test split is a list of images


def ai2d(folder: Path) -> None:
    def questions(image: str, **asked: Row) -> Row:
        return {"imageName": image, "questions": {text.replace("_", " ") + "?": each for text, each in asked.items()}}

    def asked(identity: str, texts: list[str], right: int, abc: bool) -> Row:
        return {"abcLabel": abc, "answerTexts": texts, "correctAnswer": right, "questionId": identity}

    put_zip(folder, "ai2d-all.zip", {
        "ai2d/categories.json": {"10.png": "foodChainsWebs", "3.png": "partsOfA"},
        "ai2d/questions/10.png.json": questions(
            "10.png", Who_eats=asked("10.png-0", ["a fox", "{}", "x", "y"], 0, False)),
        "ai2d/questions/3.png.json": questions(
            "3.png", What_is_dairy=asked("3.png-0", ["c", "D", "b", "a"], 1, True),
            Which_one=asked("3.png-1", ["egg", "milk", "ham", "rice"], 3, False)),
        "ai2d/annotations/3.png.json": {"text": {"T1": {"rectangle": [[1, 2], [3, 4]], "replacementText": "D"}}},
        "ai2d/images/10.png": b"an image", "ai2d/images/3.png": b"an image",
        "__MACOSX/ai2d/questions/._3.png.json": b"\0\5\26\7",
    })  # fmt: skip
    put(folder, "ai2d_test_ids.csv", "10\n4879\n")


AI2D = Case(
    ai2d,
    [
        {
            "image": "images/3.png",
            "question": "What is dairy?",
            "answers": ["B"],
            "options": ["c", "D", "b", "a"],
            "tags": {"split": "val", "abc_label": True},
            "source_id": "3.png-0",
        },
        {
            "image": "images/3.png",
            "question": "Which one?",
            "answers": ["D"],
            "options": ["egg", "milk", "ham", "rice"],
            "tags": {"split": "val", "abc_label": False},
            "source_id": "3.png-1",
        },
        {
            "image": "images/10.png",
            "question": "Who eats?",
            "answers": ["A"],
            "options": ["a fox", "{}", "x", "y"],
            "tags": {"split": "test", "abc_label": False},
            "source_id": "10.png-0",
        },
    ],
    {"all": 3, "split=val": 2, "split=test": 1},
)

CASES = {
    "vqav2": VQAV2, "gqa": GQA, "vizwiz": VIZWIZ, "textvqa": TEXTVQA, "textvqa-ocr": TEXTVQA, "refcoco": REFCOCO,
    "refcoco+": REFCOCO_PLUS, "refcocog": REFCOCOG, "ocidref": OCIDREF, "vsr": VSR, "pope": POPE, "tallyqa": TALLYQA,
    "ai2d": AI2D,
}  # fmt: skip

assert pickle.loads(python2_pickle([{"a": ["it's", 1]}])) == [{"a": ["it's", 1]}]
