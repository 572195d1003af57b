#!/usr/bin/env escript
%%! -noinput
%% Measures one promise: that a pooled connection is handed out at once, whatever else
%% goes on. Figures are of this run on this machine; compare the rows of one run with each other.
%% Called by `make bench`, which sets MACULA_PEER to the peer program.
-mode(compile).

-define(CALLS, 100_000).
-define(CALLERS, 8).
-define(SILENT, 100).
-define(NODE_ID, <<1:256>>).

main([]) ->
    {Port, Peer} = start_peer(),
    {ok, Pool} = macula_gateway_mesh:start_link(#{connect_timeout_ms => 60_000}),
    Address = {{127, 0, 0, 1}, Port},
    {ok, _} = macula_gateway_mesh:get_or_create_connection(Pool, ?NODE_ID, Address),
    Hit = fun() ->
        {ok, _} = macula_gateway_mesh:get_or_create_connection(Pool, ?NODE_ID, Address)
    end,
    io:format("~b calls by each of ~b processes; microseconds per call~n~n", [?CALLS, ?CALLERS]),
    io:format("~-46s ~8s ~8s ~8s ~12s~n", ["work", "p50", "p99", "max", "calls/s"]),
    row("ets:lookup", ets_lookup()),
    row("gen_server:call to an echo", echo_call()),
    row("pooled get_or_create_connection", Hit),
    Silent = dial_silent(Pool),
    {ok, #{dialing := ?SILENT}} = macula_gateway_mesh:get_stats(Pool),
    row("the same during " ++ integer_to_list(?SILENT) ++ " dials to silent peers", Hit),
    {ok, #{dialing := ?SILENT}} = macula_gateway_mesh:get_stats(Pool),
    io:format("~nAll ~b dials were still under way at the end.~n", [?SILENT]),
    lists:foreach(fun gen_udp:close/1, Silent),
    ok = macula_gateway_mesh:stop(Pool),
    true = port_close(Peer).

row(Name, Work) ->
    {Micros, Times} = timer:tc(fun() -> measure(Work) end),
    Sorted = lists:sort(Times),
    Count = length(Sorted),
    At = fun(Share) -> lists:nth(max(1, round(Count * Share)), Sorted) / 1000 end,
    Rate = Count * 1_000_000 div Micros,
    io:format("~-46s ~8.2f ~8.2f ~8.1f ~12b~n", [Name, At(0.5), At(0.99), At(1.0), Rate]).

measure(Work) ->
    Self = self(),
    Caller = fun() -> Self ! {self(), times(Work, ?CALLS, [])} end,
    Callers = [spawn_link(Caller) || _ <- lists:seq(1, ?CALLERS)],
    lists:append([
        receive
            {Pid, Times} -> Times
        end
     || Pid <- Callers
    ]).

times(_Work, 0, Times) ->
    Times;
times(Work, Left, Times) ->
    Begin = erlang:monotonic_time(nanosecond),
    _ = Work(),
    times(Work, Left - 1, [erlang:monotonic_time(nanosecond) - Begin | Times]).

ets_lookup() ->
    Table = ets:new(bench, [public, {read_concurrency, true}]),
    true = ets:insert(Table, {?NODE_ID, make_ref()}),
    fun() -> ets:lookup(Table, ?NODE_ID) end.

echo_call() ->
    Echo = spawn_link(fun echo/0),
    fun() -> gen_server:call(Echo, {get_or_create_connection, ?NODE_ID, address}) end.

echo() ->
    receive
        {'$gen_call', From, Request} ->
            gen_server:reply(From, Request),
            echo()
    end.

dial_silent(Pool) ->
    Sockets = [silent() || _ <- lists:seq(1, ?SILENT)],
    lists:foreach(
        fun({Index, Socket}) ->
            {ok, Port} = inet:port(Socket),
            NodeId = <<(1000 + Index):256>>,
            ok = macula_gateway_mesh:send_async(Pool, NodeId, {{127, 0, 0, 1}, Port}, <<"x">>)
        end,
        lists:zip(lists:seq(1, ?SILENT), Sockets)
    ),
    Sockets.

silent() ->
    {ok, Socket} = gen_udp:open(0, [binary, {ip, {127, 0, 0, 1}}, {active, false}]),
    Socket.

start_peer() ->
    Program = os:getenv("MACULA_PEER"),
    Peer = open_port({spawn_executable, Program}, [{args, []}, {line, 1024}, binary]),
    receive
        {Peer, {data, {eol, <<"{ready,", Rest/binary>>}}} ->
            {binary_to_integer(hd(binary:split(Rest, <<"}">>))), Peer}
    after 10_000 ->
        io:format("the peer program does not start~n"),
        halt(1)
    end.
