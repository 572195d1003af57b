%%% What loads, and looks at what became of it: frames to peers, callers that run at once, and the
%%% sum of all fates of messages.
-module(mesh_load).

-export([seed/0, send_frames/4, concurrently/1, largest_during/2]).
-export([eventually/2, await_peers/3, assert_accounted/2]).

-include_lib("stdlib/include/assert.hrl").

-define(DEADLINE_MS, 50_000).
%% Causes of drops at the door only: these messages were never accepted.
-define(REFUSED, [
    send_queue_full, pool_queue_full, message_too_large, bad_address, backing_off, too_many_dials
]).

%% As mesh_wait:eventually/2, with the time that things take under load.
eventually(Expected, Look) -> mesh_wait:eventually(Expected, Look, ?DEADLINE_MS).

%% Seeds the random choices of this process; LOAD_SEED repeats those of a run that failed.
seed() ->
    Seed = list_to_integer(os:getenv("LOAD_SEED", integer_to_list(erlang:system_time()))),
    _ = rand:seed(exsss, Seed),
    ct:pal("LOAD_SEED=~b", [Seed]),
    Seed.

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
    eventually(0, fun() -> mesh_ct:stat(Pool, outstanding_messages) end),
    eventually(0, fun() -> mesh_ct:stat(Pool, outstanding_bytes) end),
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
