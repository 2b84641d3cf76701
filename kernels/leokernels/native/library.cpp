#include "leonative.h"
#include "pool.h"

extern "C" {

int leo_version(void) { return 8; }
void* leo_pool_new(int threads) { return new Pool(threads); }
void leo_pool_delete(void* pool) { delete (Pool*)pool; }

}
