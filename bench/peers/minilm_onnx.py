"""all-MiniLM-L6-v2 in onnxruntime: the peer of metier's encoder.

    python minilm_onnx.py make MODEL_FOLDER OUT_FOLDER    model.safetensors + tokenizer.json -> model.onnx, model-int8.onnx
    python minilm_onnx.py bench OUT_FOLDER                reads lines of JSON, answers each with one

A question is {"dtype": "f32"|"int8", "texts": [...], "repeats": n}; the answer {"seconds": [...], "vector": [...]} has one time a repeat:
tokenizing, network, mean over the tokens and normalisation, as a caller needs them, and the first text's vector.

The graph is written operator by operator instead of traced, so that PyTorch is not needed; onnxruntime's own passes fuse what they know
(GELU with bias, residual with normalisation). int8 is its dynamic quantisation: weights per channel, activations per tensor at run time.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

LAYERS, WIDTH, HEADS, HEAD, EPSILON = 6, 384, 12, 32, 1e-12
THREADS = 2
OPSET = 17


def make(model, out):
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from safetensors.numpy import load_file

    weights = {name.removeprefix("bert."): tensor for name, tensor in load_file(model / "model.safetensors").items()}
    nodes, constants = [], {}

    def constant(name, value):
        constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(kind, *inputs, **attributes):
        name = f"n{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}_{name}", **attributes))
        return name

    def linear(x, key):
        product = op("MatMul", x, constant(f"{key}.weight_t", weights[f"{key}.weight"].T))
        return op("Add", product, constant(f"{key}.bias", weights[f"{key}.bias"]))

    def norm(x, key):
        names = [constant(f"{key}.{part}", weights[f"{key}.{part}"]) for part in ("weight", "bias")]
        return op("LayerNormalization", x, *names, axis=-1, epsilon=EPSILON)

    def number(name, value):
        return constant(name, np.array(value, np.float32))

    split = constant("split", np.array([0, 0, HEADS, HEAD], np.int64))
    join = constant("join", np.array([0, 0, WIDTH], np.int64))
    words = op("Gather", constant("words", weights["embeddings.word_embeddings.weight"]), "ids")
    length = op("Slice", op("Shape", "ids"), constant("one", np.array([1])), constant("two", np.array([2])))
    table = constant("positions", weights["embeddings.position_embeddings.weight"][None])
    places = op("Slice", table, constant("zero", np.array([0])), length, constant("one", np.array([1])))
    kind = constant("kind", weights["embeddings.token_type_embeddings.weight"][0])
    x = norm(op("Add", op("Add", words, places), kind), "embeddings.LayerNorm")

    real = op("Cast", "mask", to=TensorProto.FLOAT)
    wide = op("Unsqueeze", real, constant("axes", np.array([1, 2])))
    hidden = op("Mul", op("Sub", number("unit", 1.0), wide), number("lowest", -1e4))
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        heads = [
            op("Transpose", op("Reshape", linear(x, f"{at}attention.self.{part}"), split), perm=perm)
            for part, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
        ]
        scores = op("Div", op("MatMul", heads[0], heads[1]), number("root", HEAD**0.5))
        shares = op("Softmax", op("Add", scores, hidden), axis=-1)
        context = op("Reshape", op("Transpose", op("MatMul", shares, heads[2]), perm=[0, 2, 1, 3]), join)
        x = norm(op("Add", linear(context, f"{at}attention.output.dense"), x), f"{at}attention.output.LayerNorm")
        inner = linear(x, f"{at}intermediate.dense")
        erf = op("Erf", op("Div", inner, number("root2", 2**0.5)))
        inner = op("Mul", op("Mul", inner, op("Add", erf, number("unit", 1.0))), number("half", 0.5))
        x = norm(op("Add", linear(inner, f"{at}output.dense"), x), f"{at}output.LayerNorm")

    shape = ["batch", "tokens"]
    nodes.append(helper.make_node("Identity", [x], ["hidden"]))
    graph = helper.make_graph(
        nodes,
        "minilm",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [*shape, WIDTH])],
        list(constants.values()),
    )
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(network)
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(network, out / "model.onnx")
    # Symbolic inference needs sympy and finds nothing here that plain inference does not.
    quant_pre_process(out / "model.onnx", out / "prepared.onnx", skip_symbolic_shape=True)
    quantize_dynamic(out / "prepared.onnx", out / "model-int8.onnx", weight_type=QuantType.QInt8, per_channel=True)
    (out / "tokenizer.json").write_text((model / "tokenizer.json").read_text())


def bench(folder):
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    files = {"f32": "model.onnx", "int8": "model-int8.onnx"}
    sessions = {}

    def embed(session, texts):
        encoded = tokenizer.encode_batch(texts) if len(texts) > 1 else [tokenizer.encode(texts[0])]
        ids = np.array([e.ids for e in encoded], np.int64)
        mask = np.array([e.attention_mask for e in encoded], np.int64)
        hidden = session.run(None, {"ids": ids, "mask": mask})[0]
        real = mask[:, :, None].astype(np.float32)
        mean = (hidden * real).sum(1) / real.sum(1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    for line in sys.stdin:
        asked = json.loads(line)
        dtype = asked["dtype"]
        if dtype not in sessions:
            path = str(folder / files[dtype])
            sessions[dtype] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        seconds = []
        for _ in range(asked["repeats"]):
            begun = time.perf_counter()
            vectors = embed(sessions[dtype], asked["texts"])
            seconds.append(time.perf_counter() - begun)
        print(json.dumps({"seconds": seconds, "vector": vectors[0].tolist()}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        bench(Path(sys.argv[2]))
