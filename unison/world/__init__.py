"""The embedded world: pictures of coloured shapes whose judge is exact. Pure: no configuration, no data, no policy.

    scene.py     scenes, prompts and questions, the split by combination, the truth of a scene
    render.py    scene -> pixels
    judge.py     pixels -> scene -> verdict
    edits.py     instructions that change a scene, and take the change back
    riddles.py   prompts that name neither shape nor colour
    verdicts.py  what is to be said of a drawing, and how it is put right
    puzzles.py   questions in words, and questions that take several steps

To add a kind of item: a file here, and a line in `data/world.py`.
"""
