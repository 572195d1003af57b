%%% What the load, fault and property suites share: a pool and peers around a test, waiting for what
%%% must come true, and peers that stand still for as long as a test likes.
-module(mesh_load).

-export([with/3, eventually/2, eventually/3, stat/2, nodes/1, seed/0]).
-export([pause/1, await_standstill/1, resume/1]).
-export([send_frames/4, await_peers/3, assert_accounted/2, concurrently/1, largest_during/2]).

-include_lib("stdlib/include/assert.hrl").

-define(DEADLINE_MS, 50_000).
-define(POLL_MS, 5).
%% Causes of drops at the door only: these messages were never accepted.
-define(REFUSED, [
    send_queue_full, pool_queue_full, message_too_large, bad_address, backing_off, too_many_dials
]).

%% Runs `Test(Pool, Peers)' with a pool of `Options' and a peer process for each element of
%% `PeerArgs', none of which outlives it.
with(Options, PeerArgs, Test) ->
    mesh_ct:forget_configuration(),
    Peers = [mesh_peer:start(Args) || Args <- PeerArgs],
    {ok, Pool} = macula_gateway_mesh:start_link(Options),
    try
        Test(Pool, Peers)
    after
        unlink(Pool),
        ok = macula_gateway_mesh:stop(Pool),
        lists:foreach(fun resume/1, Peers),
        lists:foreach(fun mesh_peer:stop/1, Peers)
    end.

%% Waits until `Look()' is `Expected'; the error shows what it was instead.
eventually(Expected, Look) -> eventually(Expected, Look, ?DEADLINE_MS).

eventually(Expected, Look, Ms) -> poll(Expected, Look, now_ms() + Ms).

stat(Pool, Key) ->
    {ok, #{Key := Value}} = macula_gateway_mesh:get_stats(Pool),
    Value.

%% The node ids in the pool, the most recently used first.
nodes(Pool) ->
    {ok, List} = macula_gateway_mesh:list_connections(Pool),
    [NodeId || {NodeId, _} <- List].

%% Seeds the random choices of this process; LOAD_SEED repeats those of a run that failed.
seed() ->
    Seed = list_to_integer(os:getenv("LOAD_SEED", integer_to_list(erlang:system_time()))),
    _ = rand:seed(exsss, Seed),
    ct:pal("LOAD_SEED=~b", [Seed]),
    Seed.

%% A peer that stands still answers nothing, and what is sent to it waits in its socket.
pause(Peer) ->
    mesh_program:signal("STOP", mesh_peer:os_pid(Peer)),
    await_standstill(integer_to_list(mesh_peer:os_pid(Peer))).

%% A thread that is not running when the signal comes stops a little later.
await_standstill(OsPid) ->
    eventually(["T"], fun() -> lists:usort(thread_states(OsPid)) end).

resume(Peer) -> mesh_program:signal("CONT", mesh_peer:os_pid(Peer)).

%% Sends frames with these indices.
send_frames(Pool, NodeId, Address, Indices) ->
    lists:foreach(
        fun(Index) ->
            Frame = mesh_peer:frame(Index, 8 + Index rem 300),
            ok = macula_gateway_mesh:send_async(Pool, NodeId, Address, Frame)
        end,
        Indices
    ).

%% Waits until the sum of a counter over all peers is exactly this.
await_peers(Peers, Field, Sum) ->
    Look = fun() -> lists:sum([maps:get(Field, mesh_peer:stats(Peer)) || Peer <- Peers]) end,
    eventually(Sum, Look).

%% Waits until nothing is outstanding; then each of the `Sent' messages is delivered, dropped or
%% unconfirmed. Returns the figures.
assert_accounted(Pool, Sent) ->
    eventually(0, fun() -> stat(Pool, outstanding_messages) end),
    eventually(0, fun() -> stat(Pool, outstanding_bytes) end),
    eventually(true, fun() -> is_accounted(Pool, Sent) end),
    {ok, Stats} = macula_gateway_mesh:get_stats(Pool),
    ?assertMatch(#{panics := 0}, Stats),
    Stats.

%% Runs all of these at once, each in a process; their results, in their order.
concurrently(Works) ->
    Running = [spawn_monitor(fun() -> exit({done, Work()}) end) || Work <- Works],
    [
        receive
            {'DOWN', Monitor, process, _, {done, Result}} -> Result;
            {'DOWN', Monitor, process, _, Reason} -> error(Reason)
        end
     || {_, Monitor} <- Running
    ].

%% The largest of what `Look()' gives while `Work()' runs, and the result of the latter.
largest_during(Look, Work) ->
    Self = self(),
    Watcher = spawn_link(fun() -> watch(Self, Look, Look()) end),
    Result = Work(),
    Watcher ! {stop, self()},
    receive
        {Watcher, Largest} -> {Largest, Result}
    end.

watch(Owner, Look, Largest) ->
    receive
        {stop, Owner} -> Owner ! {self(), Largest}
    after 0 ->
        watch(Owner, Look, max(Largest, Look()))
    end.

%% Counted in several places, so the equations hold once the last landing has been counted. Which
%% drops were at the door the figures do not tell: between those bounds are the accepted ones.
is_accounted(Pool, Sent) ->
    {ok, Stats} = macula_gateway_mesh:get_stats(Pool),
    #{
        messages_accepted := Accepted,
        messages_delivered := Delivered,
        messages_dropped := Dropped,
        messages_unconfirmed := Unconfirmed
    } = Stats,
    AtDoor = lists:sum(maps:values(maps:with(?REFUSED, Dropped))),
    All = Delivered + lists:sum(maps:values(Dropped)) + Unconfirmed,
    IsAccounted =
        All =:= Sent andalso Accepted >= Delivered + Unconfirmed andalso
            Accepted =< Sent - AtDoor,
    IsAccounted orelse Stats.

poll(Expected, Look, Deadline) ->
    case Look() of
        Expected -> ok;
        Actual -> poll_again(Expected, Actual, Look, Deadline, now_ms() < Deadline)
    end.

poll_again(Expected, Actual, _Look, _Deadline, false) ->
    error({never, Expected, Actual});
poll_again(Expected, _Actual, Look, Deadline, true) ->
    timer:sleep(?POLL_MS),
    poll(Expected, Look, Deadline).

%% The third field of /proc/PID/task/TID/stat; the second, the name, is in parentheses.
thread_states(OsPid) ->
    [thread_state(File) || File <- filelib:wildcard("/proc/" ++ OsPid ++ "/task/*/stat")].

thread_state(File) ->
    {ok, Line} = file:read_file(File),
    [_, Fields] = string:split(Line, ") ", trailing),
    binary_to_list(binary:part(Fields, 0, 1)).

now_ms() -> erlang:monotonic_time(millisecond).
