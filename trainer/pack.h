/* A pack: the samples of one micro-step laid end to end as rows. Each sample's rows are its text
 * rows, then its video rows (frame-major, then height, then width). This file makes the index
 * tables that describe a pack to the ops; batches, mixed sizes and single samples are all packs. */
#pragma once

#include "autograd/ops.h"
#include "trainer/dit_config.h"

/* What the caller says: sizes of each sample. */
typedef struct {
    int samples;              /* B */
    const int64_t (*fhw)[3];  /* [B] latent frames, height, width */
    const int64_t *text_rows; /* [B] */
} Pack;

/* The tables, in the graph's memory. S all rows, T text rows, V video rows of this rank: all there
 * are, or its part of each sample's text and of its video (Graph.sequence). */
typedef struct {
    LatentSizes latents;        /* per sample F, H, W */
    LatentSizes grid;           /* per sample F / pt, H / p, W / p */
    Segments rows, text, video; /* [2B], [B], [B]: this rank's runs of rows of each sample */
    Segments samples;           /* one row per sample */
    Segments elements;          /* latent elements of each sample */
    Segments whole;             /* [B] all rows of each sample, on all ranks */
    Segments runs;              /* [2B] the same, each sample's text and video apart */
    Segments video_runs;        /* [B] all video rows of each sample */
    Tensor *text_here;          /* [T] i32: this rank's among all text rows; NULL: all are here */
    Tensor *video_here;         /* [V] i32: the same of video rows */
    Tensor *source;             /* [S] i32 for op_join */
    Tensor *mod_row;            /* [S] i32: 2 * sample + is_text */
    Tensor *mod_row_video;      /* [V] i32: the same for video rows: 2 * sample */
    Tensor *sample_of_video;    /* [V] i32 */
    Tensor *video_index;        /* [V] i32: the video rows among all rows */
    Tensor *row_in_sample;      /* [S] i32: among all rows of its sample */
} PackTables;

PackTables pack_tables(Graph *g, const DitConfig *c, const Pack *pack);
