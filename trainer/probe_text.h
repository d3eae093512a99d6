/* The rows of `probe` that are text:
 *
 *     probe.captions=FILE.jsonl, one {"text": "..."} a line     input_ids [n, max_text_seq_length]
 *     input_ids [n,L] i64 in probe.inputs                       embeddings [n,L,E] f32
 */
#pragma once

#include "trainer/config.h"

/* Computes what the call asks for of them, writes probe.out and prints its path. false: the call
 * asks for something else. Mistakes end the program. */
bool probe_text(const Config *c);
