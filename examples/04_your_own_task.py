"""A task of your own: rate a text from -4 to 4. Two adapters of it train in the same passes, without Ray or recipes.

.venv/bin/python -m pipelines.rated_texts && .venv/bin/python examples/04_your_own_task.py    # more: docs/add-a-task.md
"""

import pyarrow.parquet as pq
import torch

from ray_lora import AdapterEngine, BaseSpec, LoraSpec, TrainingSpec, load_base
from ray_lora.bases.padding import pad
from ray_lora.engine import HeadSpec, SlotOptimizer
from ray_lora.inference.predict import predict


class Rating:
    head = HeadSpec("AutoModelForSequenceClassification", 1)  # a plain transformers class with one output

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def encode(self, rows):
        texts = self.tokenizer([row["text"] for row in rows], truncation=True, max_length=64)["input_ids"]
        return [{"input_ids": ids, "rating": row["rating"]} for ids, row in zip(texts, rows, strict=True)]

    def size(self, row):  # rows of like size share a pass
        return len(row["input_ids"])

    def collate(self, rows):
        return pad([row["input_ids"] for row in rows], self.tokenizer)

    def loss(self, outputs, rows):  # (sum, number of terms) of each row
        wrong = outputs.logits[:, 0] - torch.tensor([row["rating"] for row in rows])
        return wrong.square(), torch.ones(len(rows))

    def decode(self, outputs, rows, parameters):
        return [{"rating": value} for value in outputs.logits[:, 0].tolist()]

    def score(self, answers, rows):
        off = sum(abs(answer["rating"] - row["rating"]) for answer, row in zip(answers, rows, strict=True))
        return {"mean_absolute_error": off / len(rows)}


STEPS, ROWS = 32, 16
base = load_base(BaseSpec(model="minilm"))
task = Rating(base.processor)
tweets = task.encode(pq.read_table("data/tweets/train.parquet").to_pylist()[:712])
train, test = tweets[:512], tweets[512:]
engine = AdapterEngine(base, slots=2, train=True)
optimizer = SlotOptimizer(engine)
slots = [engine.init(LoraSpec(r=r), task.head, seed=0, peft_type="SEQ_CLS") for r in (2, 8)]
for slot in slots:
    optimizer.join(slot, TrainingSpec(learning_rate=3e-3), STEPS)
for step in range(STEPS):
    batch = train[step * ROWS : (step + 1) * ROWS] * 2  # the same rows for both
    [(_, outputs)] = engine.forward(task.collate(batch), torch.tensor(slots).repeat_interleave(ROWS))
    task.loss(outputs, batch)[0].sum().backward()
    optimizer.step(dict.fromkeys(slots, ROWS))
for slot in slots:
    answers = predict(engine, {slot: task}, test, [slot] * len(test))
    print(f"rank {engine.residents[slot].config.r}: {task.score(answers, test)}")
