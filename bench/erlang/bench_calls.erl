%%% One promise: a pooled connection is handed out at once, whatever else goes on. Calls of
%%% get_or_create_connection/3 that find one, beside an ets:lookup/2 and a gen_server:call/2 to a
%%% server that answers at once, idle and during dials to peers that never answer.
-module(bench_calls).
-behaviour(gen_server).

-export([main/0, ets_lookup/0, echo_call/0]).
-export([init/1, handle_call/3, handle_cast/2]).

-define(NODE_ID, <<1:256>>).
-define(SILENT, 100).
%% Calls of one repetition, over all callers: the same time for each kind, more or less.
-define(FAST_CALLS, 400_000).
-define(SLOW_CALLS, 100_000).
%% What is printed of a distribution: per mille of the calls.
-define(QUANTILES, lists:seq(10, 990, 10) ++ [995, 999, 999.9, 1000]).

-spec main() -> no_return().
main() ->
    Options = bench_work:options(),
    Repetitions = bench_work:option("repetitions", Options),
    {ok, Pool} = macula_gateway_mesh:start_link(#{connect_timeout_ms => 60_000}),
    Address = {{127, 0, 0, 1}, bench_work:option("to", Options)},
    {ok, _} = macula_gateway_mesh:get_or_create_connection(Pool, ?NODE_ID, Address),
    Pooled = fun() ->
        {ok, _} = macula_gateway_mesh:get_or_create_connection(Pool, ?NODE_ID, Address)
    end,
    Works = [
        {"ets", ?FAST_CALLS, ets_lookup()},
        {"echo", ?SLOW_CALLS, echo_call()},
        {"pooled", ?FAST_CALLS, Pooled}
    ],
    bench_work:say("ready", []),
    ok = bench_work:expect("go"),
    Each = [{Callers, Work} || Callers <- [1, 64], Work <- Works],
    _ = [rate(Callers, Work) || _ <- lists:seq(1, Repetitions), {Callers, Work} <- Each],
    _ = [latency(Callers, Work) || _ <- lists:seq(1, Repetitions), {Callers, Work} <- Each],
    Sockets = dial_silent(Pool),
    [
        begin
            {ok, #{dialing := ?SILENT}} = macula_gateway_mesh:get_stats(Pool),
            latency(Callers, {"dialling", ?FAST_CALLS, Pooled})
        end
     || _ <- lists:seq(1, Repetitions), Callers <- [1, 64]
    ],
    {ok, #{dialing := ?SILENT}} = macula_gateway_mesh:get_stats(Pool),
    lists:foreach(fun gen_udp:close/1, Sockets),
    bench_work:say("done", []),
    ok = bench_work:expect("quit"),
    halt(0).

rate(Callers, {Name, Calls, Work}) ->
    Each = Calls div Callers,
    {Us, _} = timer:tc(fun() -> in_parallel(Callers, fun() -> repeat(Work, Each) end) end),
    bench_work:say("rate work=~s callers=~b per_second=~.1f", [
        Name, Callers, Callers * Each * 1.0e6 / Us
    ]).

%% Each call is timed, which costs about as much as the fastest of them.
latency(Callers, {Name, Calls, Work}) ->
    Each = Calls div 2 div Callers,
    Times = lists:append(in_parallel(Callers, fun() -> times(Work, Each, []) end)),
    Sorted = list_to_tuple(lists:sort(Times)),
    Count = tuple_size(Sorted),
    At = [element(max(1, min(Count, round(Count * Q / 1000))), Sorted) || Q <- ?QUANTILES],
    bench_work:say("latency work=~s callers=~b ns=~ts", [
        Name, Callers, lists:join(",", [integer_to_list(Time) || Time <- At])
    ]).

in_parallel(Callers, Fun) ->
    Self = self(),
    Pids = [spawn_link(fun() -> Self ! {self(), Fun()} end) || _ <- lists:seq(1, Callers)],
    [receive {Pid, Result} -> Result end || Pid <- Pids].

repeat(_Work, 0) ->
    ok;
repeat(Work, Left) ->
    _ = Work(),
    repeat(Work, Left - 1).

times(_Work, 0, Times) ->
    Times;
times(Work, Left, Times) ->
    Begin = erlang:monotonic_time(nanosecond),
    _ = Work(),
    times(Work, Left - 1, [erlang:monotonic_time(nanosecond) - Begin | Times]).

%% @doc Something to look up, and the call that does.
-spec ets_lookup() -> fun(() -> term()).
ets_lookup() ->
    Table = ets:new(bench, [public, {read_concurrency, true}]),
    true = ets:insert(Table, {?NODE_ID, make_ref()}),
    fun() -> [{_, _}] = ets:lookup(Table, ?NODE_ID) end.

%% @doc A server that answers at once, and the call of it.
-spec echo_call() -> fun(() -> term()).
echo_call() ->
    {ok, Echo} = gen_server:start_link(?MODULE, [], []),
    fun() -> {ok, _} = gen_server:call(Echo, {get_or_create_connection, ?NODE_ID, address}) end.

-spec init([]) -> {ok, reference()}.
init([]) -> {ok, make_ref()}.

-spec handle_call(term(), gen_server:from(), Stream) -> {reply, {ok, Stream}, Stream} when
    Stream :: reference().
handle_call(_Request, _From, Stream) -> {reply, {ok, Stream}, Stream}.

-spec handle_cast(term(), reference()) -> {noreply, reference()}.
handle_cast(_Request, Stream) -> {noreply, Stream}.

dial_silent(Pool) ->
    Dial = fun(Index) ->
        {ok, Socket} = gen_udp:open(0, [binary, {ip, {127, 0, 0, 1}}, {active, false}]),
        {ok, Port} = inet:port(Socket),
        Address = {{127, 0, 0, 1}, Port},
        ok = macula_gateway_mesh:send_async(Pool, <<(1000 + Index):256>>, Address, <<"x">>),
        Socket
    end,
    [Dial(Index) || Index <- lists:seq(1, ?SILENT)].
