/* What the shim captures; for its C++ files. */
#pragma once

#include <functional>

namespace shim {

/* Whether a stream is being captured. */
bool capturing();
/* Keeps a piece of work of `stream`, which must belong to the capture. */
void capture(const void *stream, std::function<void()> work);

} // namespace shim
