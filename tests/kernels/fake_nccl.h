/* A GPU of host memory and an NCCL of plain loops, for ranks that are processes of one machine. */
#pragma once

#include "kernels/kernels.h"

/* Of its table: streams, memory, copy, upload, download and axpy. NCCL's messages go through files
 * in the folder that the environment's FAKE_NCCL names. */
const Backend *fake_gpu(void);

/* From now on: NCCL says that a link broke; the device does not answer what is asked of it. */
void fake_break(void);
void fake_block(void);
