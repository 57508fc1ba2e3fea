/* Faults and paging, after hostsim/fault.py and swap.py. Part of kernels.c. */

static inline int may_take_frame(const State *st, const Vm *vm) {
    const Host *host = st->host;
    int is_due = vm->resident + vm->shared < max(vm->target, vm->reservation);
    return host->free > 0 && (host->level < LOW || is_due);
}

static inline int64_t swap_in(State *st, Vm *vm, int64_t slot) {
    REQUIRE((st->page[slot] & ACCESSED) == 0); /* not dropped: it lies in swap */
    if (st->host->swap_io_left <= 0) return NO_IO;
    st->host->swap_io_left -= 1;
    set_state(st, slot, RESIDENT);
    own(st, vm, slot, take_frame(st));
    vm->swapped -= 1;
    st->host->swap_ins += 1;
    vm->cause = SWAP_IN;
    return st->host->swap_latency_ns;
}

static inline int64_t write_page(State *st, int64_t v, int64_t ppn, int64_t word) {
    Vm *vm = &st->vms[v];
    int64_t slot = vm->base_slot + ppn, cost = 0;
    if ((st->page[slot] & STATE) == RESIDENT) {
        rewrite(st, v, ppn, word);
        return 0;
    }
    int64_t index = st->content[slot] & INDEX;
    int kind;
    if (refs_of(st, index) == 1) {
        kind = st->shared_kind[index];
        st->shared_kind[index] = 0;
        st->host->distinct -= 1;
        st->host->cow_reuses += 1;
    } else if (st->host->free <= 0) {
        return NO_FRAME;
    } else {
        kind = take_frame(st);
        st->host->cow_breaks += 1;
        vm->cause = COW;
        cost = st->host->cow_ns;
    }
    st->indexed[index] += 1;
    int accessed = st->page[slot] & ACCESSED;
    set_state(st, slot, RESIDENT);
    st->page[slot] |= accessed;
    own(st, vm, slot, kind);
    vm->shared -= 1;
    st->content[slot] = (uint32_t)word;
    return cost;
}

static inline int64_t touch(State *st, int64_t v, int64_t ppn, int is_write, int64_t word) {
    Vm *vm = &st->vms[v];
    int64_t slot = vm->base_slot + ppn, cost = 0;
    int now = st->page[slot] & STATE;
    if (now != RESIDENT && now != SHARED) {
        if (!may_take_frame(st, vm)) return NO_FRAME;
        REQUIRE(now == SWAPPED);
        cost = swap_in(st, vm, slot);
        if (cost < 0) return cost;
    }
    if (is_write) {
        int64_t extra = write_page(st, v, ppn, word);
        if (extra < 0) return extra;
        cost += extra;
    }
    if ((st->page[slot] & ACCESSED) == 0) st->page[slot] |= ACCESSED;
    return cost * st->host->sample;
}

static inline int64_t fresh_word(Vm *vm) {
    vm->serial += 1;
    return UNIQUE | (vm->serial & INDEX);
}

/* Random touches, all reads or all writes: benchmarks' own loop around fault.touch. */
int64_t touch_many(const Table *table, int64_t v, int64_t n, int64_t is_write) {
    State state = state_of(table), *st = &state;
    Vm *vm = &st->vms[v];
    const int64_t base = vm->base_slot, size = vm->size_slots;
    const uint64_t key = stream(st->host, TOUCH, vm->vm);
    int64_t ring[RING], cost = 0;
    for (int64_t draw = 0; draw < FAR; draw++)
        fetch_page(st, base + (ring[draw % RING] = below(key, draw, size)));
    for (int64_t draw = 0; draw < n; draw++) {
        int64_t ahead = draw + FAR;
        fetch_page(st, base + (ring[ahead % RING] = below(key, ahead, size)));
        if (is_write) fetch_content(st, v, ring[(draw + NEAR) % RING], 1);
        int64_t word = is_write ? fresh_word(vm) : 0;
        cost += touch(st, v, ring[draw % RING], (int)is_write, word);
    }
    return cost;
}

static inline int is_victim(const State *st, int64_t slot) {
    int now = st->page[slot] & STATE;
    if (now == SHARED) return refs_of(st, st->content[slot] & INDEX) == 1;
    return now == RESIDENT;
}

static int64_t find_victim(const State *st, int64_t v, uint64_t key, int64_t draw, int64_t first) {
    const int64_t base = st->vms[v].base_slot, size = st->vms[v].size_slots;
    if (is_victim(st, base + first)) return first;
    const int64_t first_draw = draw * (VICTIM_LOOKS + 1);
    for (int64_t look = 1; look < VICTIM_LOOKS; look++) {
        int64_t ppn = below(key, first_draw + look, size);
        if (is_victim(st, base + ppn)) return ppn;
    }
    int64_t n_victims = 0, ppn = -1;
    for (int64_t i = 0; i < size; i++) n_victims += is_victim(st, base + i);
    if (n_victims == 0) return -1;
    int64_t rank = below(key, first_draw + VICTIM_LOOKS, n_victims);
    while (rank >= 0) rank -= is_victim(st, base + ++ppn);
    return ppn;
}

static void page_out(State *st, int64_t v, int64_t ppn) {
    Host *host = st->host;
    Vm *vm = &st->vms[v];
    int64_t slot = vm->base_slot + ppn;
    int kind = 0;
    if ((st->page[slot] & STATE) == RESIDENT) {
        host->stale_hints += drop_hint(st, v, ppn);
        if (host->share_first == 1 && vm->sharing == 1 && match(st, v, ppn, 0)) {
            host->shared_before_swap += 1;
            return;
        }
        kind = disown(st, vm, slot);
    } else {
        int64_t index = st->content[slot] & INDEX;
        st->indexed[index] += 1; /* the last one, or it were no victim */
        vm->shared -= 1;
        host->distinct -= 1;
        kind = st->shared_kind[index];
        st->shared_kind[index] = 0;
    }
    REQUIRE(host->highmem == 0 && host->map_clean == 0);
    set_state(st, slot, SWAPPED);
    vm->swapped += 1;
    release_frame(st, kind);
    host->swap_outs += 1;
    if (host->swap_cluster_left == 0) {
        host->swap_io_left -= 1;
        host->swap_cluster_left = host->swap_cluster;
    }
    host->swap_cluster_left -= 1;
}

/* Reclaim: swap.page_out_vm. Returns how many victims there were. */
int64_t page_out_vm(const Table *table, int64_t v, int64_t n, int64_t free_goal) {
    State state = state_of(table), *st = &state;
    Host *host = st->host;
    Vm *vm = &st->vms[v];
    const int64_t base = vm->base_slot, size = vm->size_slots, per_draw = VICTIM_LOOKS + 1;
    const uint64_t key = stream(host, SWAP, vm->vm);
    int64_t ring[RING], done = 0;
    for (int64_t draw = 0; draw < FAR; draw++)
        fetch_page(st, base + (ring[draw % RING] = below(key, draw * per_draw, size)));
    while (done < n && host->free < free_goal &&
           (host->swap_cluster_left > 0 || host->swap_io_left > 0)) {
        if (vm->swapped >= size - vm->reservation) break;
        int64_t ahead = done + FAR;
        fetch_page(st, base + (ring[ahead % RING] = below(key, ahead * per_draw, size)));
        fetch_content(st, v, ring[(done + NEAR) % RING], 0);
        fetch_hinting(st, base + ring[(done + NEXT) % RING]);
        int64_t ppn = find_victim(st, v, key, done, ring[done % RING]);
        if (ppn < 0) break;
        page_out(st, v, ppn);
        done += 1;
    }
    return done;
}
