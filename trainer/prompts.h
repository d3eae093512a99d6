/* What is to be sampled, as text: the prompts of a call, and their embeddings. */
#pragma once

#include "data/t5.h"
#include "trainer/config.h"
#include "trainer/dit_config.h"

/* sample.prompt, or the lines of sample.prompts. The caller frees the list's items. Ends the
 * program where there is none, or a line is empty (exit 2). */
StringList prompts_read(const Config *c);
void prompts_free(StringList *p);

/* Embeddings [n, text_length, text_dim] of the texts through the tokenizer and the text encoder of
 * model.path, which are open only meanwhile. Says on stderr when a text is cut. Ends the program on
 * mistakes. */
float *prompts_encode(const Config *c, const DitConfig *model, char *const *texts, int n);

/* How many texts of `length` tokens go through the encoder at once: as many as its device has
 * memory for, at most `most`; an embedding does not depend on it. Ends the program where
 * memory.budget is too little for one (exit 2). */
int64_t captions_together(const Config *c, const T5 *t, int64_t length, int64_t most);
