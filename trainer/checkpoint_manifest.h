/* Writing manifest.json, for checkpoint.c alone. */
#pragma once

#include "trainer/checkpoint.h"

/* Digests every file of the folder and writes manifest.json there. */
bool manifest_write(const char *folder, const Position *at, Error *e);
