"""The bundled tiny models from scratch: the real classes at toy size, taught the embedded world on two cores.

    corpus.py     what they read, write and draw, and the tokenizer of its words
    course.py     supervised steps, a log, held-out figures, small files
    vq.py         pictures, patches and codes: what image tokenizers are fitted to
    janus.py      the tiny Janus
    showo.py      the tiny Show-o
    metaquery.py  the tiny MetaQuery

To add one: a file with a `pretrain_<family>(config) -> folder`, and a line in `unison pretrain` (cli/tools.py).
"""
