/* A device whose memory the host cannot touch, around one whose memory it can.
 *
 *     const Backend *k = guarded(&BACKEND_SHIM);
 *
 * Memory of `alloc` is open only while an entry of the table runs that was given it; at other times
 * a read or write ends the program, naming the allocation, as does one behind its end. Entries
 * refuse pointers that are not of the memory that they promise to work on. Memory of `alloc_host`
 * that a copy was queued for stays closed (to writing: where the copy reads it) until the stream,
 * or one that waited for it, is synced; that the inner device copies at once does not show.
 */
#pragma once

#include "kernels/kernels.h"

C_BEGIN

/* The table around `inner`, which stays the same as long as there is an allocation. */
const Backend *guarded(const Backend *inner);
/* Calls of entries so far that work on device memory. */
int64_t guarded_calls(void);

C_END
