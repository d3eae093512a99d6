/* The rows of `probe` that are the autoencoder's:
 *
 *     video [B,3,T,H,W] in [-1,1]                  moments [B,2C,F,h,w] f32
 *     z [B,C,F,h,w] as the decoder takes it        frames [B,3,T,H,W] f32, not clamped
 *
 * vae.tiling and its keys say how; other tensors of the file are not looked at.
 */
#pragma once

#include "trainer/config.h"

/* Computes what the inputs ask for of them, writes probe.out and prints its path. false: the call
 * asks for something else. Mistakes end the program. */
bool probe_vae(const Config *c);
