%%% A pool at a steady load for long: `make soak', and its short form. What it takes must not grow,
%%% and all that it is given must arrive. SOAK_MINUTES makes it longer; SOAK_DIR is where samples
%%% and plot go.
%%%
%%% The bound, for each figure: the slope of Theil and Sen over the samples after the warm-up, times
%%% their time, is less than the figure's own noise in that time (four median absolute deviations
%%% from the line) or than its grain (what one step of it is worth: carriers of an allocator, a
%%% connection). In the short form latency is not judged: how busy the machine is may change once
%%% for all of it. It sends some 13,000 messages of 20 KB on average: were one in twenty
%%% kept, that would be 13 MB, three times the grain. An hour shows one in five thousand.
-module(soak_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, nothing_grows_at_a_steady_load/1]).

-define(POOL, macula_gateway_mesh).
%% The short form: its warm-up, its samples.
-define(WARM_UP_MS, 6_000).
-define(SAMPLES, 20).
-define(SAMPLE_MS, 700).
%% The long form samples at most so often over its time.
-define(MOST_SAMPLES, 1_000).
-define(CALLERS, 6).
%% No peer is ever away, and that a machine is busy must not decide: so nothing is given up.
-define(PATIENCE_MS, 30_000).
-define(OPTIONS, #{
    max_mesh_connections => 3,
    linger_ms => ?PATIENCE_MS,
    connect_timeout_ms => ?PATIENCE_MS,
    ack_timeout_ms => ?PATIENCE_MS,
    queue_max_messages => 500,
    runtime_workers => 1
}).

suite() -> [{timetrap, {minutes, 3}}].

all() -> [nothing_grows_at_a_steady_load].

nothing_grows_at_a_steady_load(Config) ->
    %% A node runs for months: what grows by a kilobyte a minute ends it. Four peers for three
    %% places, so that connections come and go all the time.
    Minutes = list_to_integer(os:getenv("SOAK_MINUTES", "0")),
    _ = ct:timetrap({minutes, 3 + 2 * Minutes}),
    Dir = os:getenv("SOAK_DIR", proplists:get_value(priv_dir, Config)),
    mesh_vm:with(fun(Vm) ->
        Peers = [mesh_peer:start() || _ <- lists:seq(1, 4)],
        Targets = [
            {mesh_peer:node_id(N), mesh_peer:address(Peer)}
         || {N, Peer} <- lists:zip(lists:seq(1, 4), Peers)
        ],
        ok = mesh_vm:call(Vm, start_pool, [?OPTIONS]),
        How = #{keeps => false, confirm_ms => ?PATIENCE_MS},
        ok = mesh_vm:call(Vm, mesh_callers, start, [Targets, ?CALLERS, 1, How]),
        %% Pages and tables that are touched once, the library's threads, the code itself.
        timer:sleep(?WARM_UP_MS),
        {Count, Ms} = samples(Minutes),
        Samples = [sample(Vm, hd(Targets), Ms) || _ <- lists:seq(1, Count)],
        ok = mesh_soak:write(Dir, Samples),
        Report = mesh_vm:call(Vm, mesh_callers, stop, []),
        ct:pal("~b messages; samples and plot in ~s", [maps:get(given, Report), Dir]),
        assert_all_delivered(Vm, Report, Count * mesh_soak:probes()),
        assert_churn(Vm, Samples),
        lists:foreach(fun(Figure) -> assert_steady(Figure, Samples) end, judged(Minutes)),
        ok = mesh_vm:call(Vm, stop_pool, []),
        lists:foreach(fun mesh_peer:stop/1, Peers)
    end).

samples(0) ->
    {?SAMPLES, ?SAMPLE_MS};
samples(Minutes) ->
    Ms = Minutes * 60_000,
    Count = min(?MOST_SAMPLES, Ms div ?SAMPLE_MS),
    {Count, Ms div Count}.

judged(0) -> mesh_soak:figures() -- [latency_us];
judged(_Minutes) -> mesh_soak:figures().

%% The time between two samples is part of the measurement, no wait for anything.
sample(Vm, Target, Ms) ->
    timer:sleep(Ms),
    mesh_soak:sample(Vm, Target).

%% So is one whose connections never change.
assert_churn(Vm, Samples) ->
    {ok, #{evictions := Evictions}} = mesh_vm:call(Vm, get_stats, [?POOL]),
    ct:pal("~b connections were evicted", [Evictions]),
    ?assert(Evictions > length(Samples)).

%% A pool that refuses its load is steady, too.
assert_all_delivered(Vm, #{given := Given, refused := Refused}, Probes) ->
    ?assertEqual([], Refused),
    ?assert(Given > 0),
    mesh_load:eventually({Given + Probes, #{}, 0}, fun() ->
        {ok, Stats} = mesh_vm:call(Vm, get_stats, [?POOL]),
        #{messages_delivered := Delivered, messages_dropped := Dropped} = Stats,
        {Delivered, Dropped, maps:get(messages_unconfirmed, Stats)}
    end).

assert_steady(Figure, Samples) ->
    #{growth := Growth, noise := Noise, grain := Grain} = mesh_soak:trend(Figure, Samples),
    ct:pal("~s: ~.1f in that time; noise ~.1f, grain ~w", [Figure, Growth, Noise, Grain]),
    ?assert(Growth < max(Noise, Grain), {Figure, Growth}).
