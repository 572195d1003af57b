%%% A node as v0.20.5 has it, as far as its QUIC server goes. One process: it listens, accepts by
%%% messages, keeps every connection and stream that it has ever seen, never closes its half of a
%%% stream, and answers a request on the stream on which it came. It takes each delivery for one
%%% whole message, as such nodes do.
%%%
%%% A request is a frame of type 2, and its answer one of type 3 with the same payload; a
%%% notification is a frame of type 1, which is counted by the number in it.
-module(old_node).

-behaviour(gen_server).

-export([start/3, start_link/2, port/1, counts/1, twice/1, stop/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(NOTIFICATION, 1).
-define(REQUEST, 2).
-define(ANSWER, 3).

-record(state, {
    listener :: macula_quic:listener(),
    connections = [] :: [macula_quic:connection()],
    streams = [] :: [macula_quic:stream()],
    %% By its number: whether it has come.
    notified :: atomics:atomics_ref(),
    counts = #{} :: #{atom() => non_neg_integer()}
}).

%% `Notifications': how many will come, numbered from 1.
start_link(Notifications, Options) ->
    gen_server:start_link(?MODULE, {Notifications, 0, quic_ct:server_options(Options)}, []).

%% The same, at this port and with all options given; it outlives who starts it.
start(Notifications, Port, Options) ->
    gen_server:start(?MODULE, {Notifications, Port, Options}, []).

port(Node) -> gen_server:call(Node, port, infinity).

%% How many requests, distinct notifications, ..., have come.
counts(Node) -> gen_server:call(Node, counts, infinity).

%% The numbers of notifications that have come more than once.
twice(Node) -> gen_server:call(Node, twice, infinity).

stop(Node) -> gen_server:stop(Node).

init({Notifications, Port, Options}) ->
    {ok, Listener} = macula_quic:listen({{127, 0, 0, 1}, Port}, Options),
    {ok, Listener} = macula_quic:async_accept(Listener, #{}),
    {ok, #state{listener = Listener, notified = atomics:new(Notifications, [])}}.

handle_call(port, _From, #state{listener = Listener} = State) ->
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    {reply, Port, State};
handle_call(twice, _From, #state{notified = Notified} = State) ->
    #{size := Size} = atomics:info(Notified),
    {reply, [N || N <- lists:seq(1, Size), atomics:get(Notified, N) > 1], State};
handle_call(counts, _From, #state{connections = Connections, streams = Streams} = State) ->
    Held = #{connections => length(Connections), streams => length(Streams)},
    {reply, maps:merge(State#state.counts, Held), State}.

handle_cast(_Message, State) -> {noreply, State}.

handle_info({quic, new_conn, Connection, _Facts}, State) ->
    {ok, Connection} = macula_quic:handshake(Connection),
    {ok, Connection} = macula_quic:async_accept_stream(Connection, #{}),
    {ok, _} = macula_quic:async_accept(State#state.listener, #{}),
    {noreply, State#state{connections = [Connection | State#state.connections]}};
handle_info({quic, new_stream, Stream, #{conn := Connection}}, State) ->
    %% Such nodes go on whatever the answer is: the connection may be over already.
    _ = macula_quic:async_accept_stream(Connection, #{}),
    ok = macula_quic:setopt(Stream, active, true),
    {noreply, State#state{streams = [Stream | State#state.streams]}};
handle_info({quic, Data, Stream, _Detail}, State) when is_binary(Data) ->
    {noreply, count(handle_message(Data, Stream, State), State)};
handle_info({quic, _What, _Handle, _Detail}, State) ->
    {noreply, State}.

handle_message(<<1, ?REQUEST, 0, 0, Size:32, Payload:Size/binary>>, Stream, _State) ->
    Answer = <<1, ?ANSWER, 0, 0, Size:32, Payload/binary>>,
    case macula_quic:async_send(Stream, Answer) of
        ok -> requests;
        {error, Reason} -> Reason
    end;
handle_message(<<1, ?NOTIFICATION, 0, 0, Size:32, N:64, _:(Size - 8)/binary>>, _Stream, State) ->
    case atomics:add_get(State#state.notified, N, 1) of
        1 -> notifications;
        _ -> repeated
    end;
handle_message(_Other, _Stream, _State) ->
    undecodable.

count(What, #state{counts = Counts} = State) ->
    State#state{counts = maps:update_with(What, fun(N) -> N + 1 end, 1, Counts)}.
